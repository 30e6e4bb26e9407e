"""Freezes parts of a detector, and gives them learning rates of their own."""

from __future__ import annotations

from torch import nn

from runtime.errors import InputError
from train.config import TrainConfig
from train.model import DetectorModel

_PART_OF = {"fpn": "neck", "coarse": "neck", "widen": "neck", "head": "heads"}
"""Parts of the submodules that are not called as their part."""


def part_of(name: str) -> str:
    """Returns the part that a parameter or submodule of a detector belongs to."""
    first = name.split(".")[0]
    return _PART_OF.get(first, first)


def frozen_parts(config: TrainConfig, epoch: int) -> set[str]:
    """Returns the parts that stay as they are in an epoch, counted from 0."""
    return {part for part, epochs in config.freeze if not epochs or epoch < epochs}


def never_trained(config: TrainConfig) -> set[str]:
    """Returns the parts that stay as they are for the whole run."""
    return {part for part, epochs in config.freeze if not epochs or epochs >= config.epochs}


def check_parts(model: DetectorModel, config: TrainConfig) -> None:
    """Raises InputError where the configuration names parts that a model does not have, or leaves nothing to train."""
    there = {part_of(name) for name, _ in model.named_parameters()}
    for option, named in (("--freeze", dict(config.freeze)), ("--part-rates", dict(config.part_rates))):
        if absent := sorted(named.keys() - there):
            raise InputError(f"{option} {absent[0]}: this model has no such part; it has {', '.join(sorted(there))}")
    if frozen_parts(config, 0) >= there:
        raise InputError(f"--freeze: nothing is left to train; expected one of {', '.join(sorted(there))} to stay free")


def set_frozen(model: DetectorModel, parts: set[str]) -> bool:
    """Has exactly these parts get no gradients; True if that changes anything.

    Their batch norm keeps its statistics only in evaluation mode, see `set_training_mode`.
    """
    changed = False
    for name, parameter in model.named_parameters():
        trains = part_of(name) not in parts
        changed |= parameter.requires_grad != trains
        parameter.requires_grad_(trains)
    return changed


def set_training_mode(model: DetectorModel, parts: set[str]) -> None:
    """Sets training mode, and evaluation mode for the frozen parts: no statistics move there, and nothing is dropped."""
    model.train()
    for name, module in model.named_children():
        if part_of(name) in parts:
            module.eval()


def rate_factor(config: TrainConfig, name: str) -> float:
    """Returns the factor on the learning rate of a parameter."""
    return dict(config.part_rates).get(part_of(name), 1.0)


def trainable(model: nn.Module, config: TrainConfig) -> list[tuple[str, nn.Parameter]]:
    """Lists the parameters that train at any time of a run, by name."""
    never = never_trained(config)
    frozen_for_now = frozen_parts(config, 0)
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if part_of(name) not in never and (parameter.requires_grad or part_of(name) in frozen_for_now)
    ]
