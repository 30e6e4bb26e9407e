"""Renames foreign tensors to our names, and accounts for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runtime.errors import ModelError
from runtime.files import PathLike
from train.config import TrainConfig

Pairs = list[tuple[str, str]]
"""(prefix of their names, prefix of ours)."""
_LISTED = 3  # names that an error spells out of each kind


@dataclass(frozen=True)
class Published:
    """A published detector in our layout.

    Attributes:
        config: the recipe it corresponds to.
        num_classes: C.
        weights: our state dict, float32.
    """

    config: TrainConfig
    num_classes: int
    weights: dict[str, Tensor]


def block(theirs: str, ours: str) -> Pairs:
    """A `ConvBlock` whose parts are called `conv` and `batch_norm`."""
    return [(f"{theirs}.conv", f"{ours}.conv"), (f"{theirs}.batch_norm", f"{ours}.norm")]


def convert(path: PathLike, what: str, tensors: Mapping[str, Tensor], pairs: Pairs, model: nn.Module) -> dict[str, Tensor]:
    """Makes a state dict of `model` in float32 from tensors under other names.

    Args:
        path: of the file, for the error.
        what: the layout, for the error.
        tensors: of the file.
        pairs: (their prefix, our prefix), covering every tensor of `model`; the longest prefix of ours counts.
        model: may be on the meta device.

    Raises:
        ModelError: tensors are missing, left over, or of another shape; the message lists them by their own names.
    """
    prefixes = {ours: theirs for theirs, ours in pairs}
    wanted = {_their_name(name, prefixes): (name, value.shape) for name, value in model.state_dict().items()}
    tensors = {**_counters(wanted), **tensors}
    other = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name][1]]
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "of another shape": [f"{name} {list(tensors[name].shape)} instead of {list(wanted[name][1])}" for name in other],
    }
    found = [f"{len(names)} {kind} ({listed(names, _LISTED)})" for kind, names in problems.items() if names]
    if found:
        raise ModelError(f"{path}: looks like {what}, but its tensors do not fit: {', '.join(found)}")
    return {ours: as_float32(tensors[theirs]) for theirs, (ours, _) in wanted.items()}


def _their_name(ours: str, prefixes: Mapping[str, str]) -> str:
    parts = ours.split(".")
    cut = next(cut for cut in range(len(parts), 0, -1) if ".".join(parts[:cut]) in prefixes)
    return ".".join([prefixes[".".join(parts[:cut])], *parts[cut:]])


def _counters(names: Iterable[str]) -> dict[str, Tensor]:
    """Returns zeros for batch norm's counters, which files from before PyTorch 0.4.1 lack and no computation reads."""
    return {name: torch.tensor(0) for name in names if name.endswith(".num_batches_tracked")}


def as_float32(value: Tensor) -> Tensor:
    """Casts floating point of any width to float32; integers (batch norm's counters) stay."""
    return value.detach().float() if value.is_floating_point() else value.detach()


def listed(names: Iterable[str], most: int) -> str:
    """Lists the first `most` names, and dots where there are more."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
