"""Says what a training run would be, and draws its first batch, without starting it: `python -m train --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.media.image import write_image
from train.config import TrainConfig
from train.data.epoch import SampleIndex, shared_batches
from train.data.training_set import Batch
from train.model import DetectorModel
from train.model.complexity import complexity
from train.optim import warmup_span
from train.parts import frozen_parts
from train.run.prepare import Run
from train.run_log import show_batch

_TRIED = 2  # images whose activations are counted
_MOMENTS = {"sgd": 1, "adamw": 2}  # values that the optimizer keeps for each weight


@dataclass(frozen=True)
class Memory:
    """Bytes that a step takes on a device.

    Attributes:
        weights: of the model, its batch norm statistics and, with `--ema`, their average.
        gradients: of the weights that train.
        optimizer: momentum, or AdamW's two moments.
        activations: that the backward pass needs; without those of the loss, and what the device's kernels take for themselves.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return self.weights + self.gradients + self.optimizer + self.activations


def describe(run: Run, image_path: Path) -> list[str]:
    """Describes a prepared run, a line each, and draws the first batch into a file.

    Args:
        run: not started.
        image_path: where the first batch goes: images as the network sees them, with their labels.

    Raises:
        InputError: the images cannot be read.
        OutputError: the file cannot be written.
    """
    state, config = run.state, run.state.config
    run.step.freeze(frozen_parts(config, state.epoch))
    plan = run.plan_epoch()
    batch = first_batch(run, plan)
    write_image(image_path, show_batch(batch, state.spec))
    side = max(config.size, *config.sizes)
    cost = complexity(config.model, state.spec.num_classes, (config.size,))
    memory = estimate_memory(run, len(batch.images), side)
    steps = len(plan)
    left = config.epochs - state.epoch
    return [
        f"model:     {state.spec.name}, {cost.parameters / 1e6:.1f} M parameters,"
        f" {cost.operations[config.size] / 1e9:.1f} GFLOPs at {config.size}",
        f"data:      {len(run.training_set)} images to train on, {len(run.val_data)} to validate,"
        f" {state.spec.num_classes} classes",
        f"schedule:  {left} epochs of {steps} steps, {config.batch} images a step; {_rates(config, steps)}",
        f"memory:    about {_gigabytes(memory.total)} on {run.device} for {len(batch.images)} images of {side}x{side} at a"
        f" time: weights {_gigabytes(memory.weights)}, gradients {_gigabytes(memory.gradients)},"
        f" optimizer {_gigabytes(memory.optimizer)}, activations {_gigabytes(memory.activations)}",
        f"images:    {image_path}",
    ]


def first_batch(run: Run, plan: Sequence[list[SampleIndex]]) -> Batch:
    """Reads the first images of an epoch's plan that this rank would train on, as many as the device takes at a time."""
    left = plan[run.state.step :] or plan  # a run may continue with an evaluation
    shares = shared_batches(left, run.world.rank, run.world.size, run.step.parts)
    with run.feed:
        return next(iter(run.feed.batches(shares[:1])))


def estimate_memory(run: Run, images: int, side: int) -> Memory:
    """Counts the tensors of a step; activations are those of a few images, scaled."""
    state, model = run.state, run.state.model
    tried = torch.rand(_TRIED, 3, side, side, device=run.device)
    with state.precision.autocast():
        activations = saved_bytes(model, tried) * images // _TRIED
    weights = _bytes([*model.parameters(), *model.buffers()])
    gradients = _bytes([weight for weight in model.parameters() if weight.requires_grad])
    moments = _bytes([weight for group in state.optimizer.param_groups for weight in group["params"]])
    return Memory(
        weights * (2 if state.average else 1),
        gradients,
        moments * _MOMENTS[state.config.optimizer],
        activations,
    )


def saved_bytes(model: DetectorModel, images: Tensor) -> int:
    """Counts the bytes that a forward pass keeps for the backward pass, besides the weights."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs: Any = model.outputs(images)  # held until the count is read, so that no address is used twice
    total = sum(kept.values())
    del outputs
    return total


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _rates(config: TrainConfig, steps: int) -> str:
    warmup = round(warmup_span(config, steps) * steps)
    spans = [f"learning rate {config.learning_rate:g}"]
    spans += [f"rising for {warmup} steps"] if warmup else []
    spans += [f"flat for the last {config.tail_epochs} epochs"] if config.tail_epochs else []
    return ", ".join(spans)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
