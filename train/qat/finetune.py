"""Trains a detector on with the rounding of INT8 in its network, until it computes again what it computed before."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from runtime.errors import CheckFailed, InputError
from train.distributed import World
from train.memory import is_out_of_memory, keep_freed_memory
from train.model import DetectorModel
from train.model.folding import fold_batch_norm, unfolded_weights
from train.qat.fake_quant import FakeQuantization, learnable_scales
from train.qat.plan import QuantPlan, Scale
from train.run.device import choose_device

log = logging.getLogger(__name__)

_CLIP = 10.0
_SMALLEST_VARIANCE = 1e-6  # of a channel that says the same of every cell


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """How to train on.

    Attributes:
        epochs: over the images.
        batch: images a step.
        learning_rate: of Adam for the weights at the start; it falls to 0 by a cosine.
        scale_rate: the same for the logarithms of the scales.
        seed: of the order of the images.
        device: `auto`, `cpu`, `cuda`, ...
    """

    epochs: int = 5
    batch: int = 8
    learning_rate: float = 1e-4
    scale_rate: float = 2e-2
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Finetuned:
    """Result of `finetune`.

    Attributes:
        weights: of a model with batch norms, which do nothing any more.
        scales: what became of each scale of an activation.
        distances: mean distance to the float model in each epoch.
    """

    weights: dict[str, Tensor]
    scales: dict[Scale, float]
    distances: list[float]


def finetune(
    model: DetectorModel, plan: QuantPlan, images: Sequence[Callable[[], NDArray[np.float32]]], options: FinetuneOptions
) -> Finetuned:
    """Trains a copy of a model with fake quantization; weights and the scales of activations are learned.

    The model itself is the teacher: the loss is the squared difference to its raw maps, relative to the variance of each of
    their channels, and needs no labels. The batch norms are folded into the convolutions first, so that the weights that are
    rounded in training are those that will be rounded in the file.

    Args:
        model: the float model, in evaluation mode.
        plan: what to quantize.
        images: each gives the model's input of an image, float32 `[1, 3, H, W]`.
        options: how to train.

    Raises:
        InputError: the device has too little memory.
        ModelError: the plan is of another network.
        CheckFailed: the loss is not finite.
    """
    device = choose_device(options.device, World())
    if device.type == "cpu":
        keep_freed_memory()
    teacher, student = model.to(device), fold_batch_norm(model).to(device)
    scales = learnable_scales(plan, device)
    rates = ((list(student.parameters()), options.learning_rate), (list(scales.values()), options.scale_rate))
    optimizer = torch.optim.Adam([{"params": values, "lr": rate, "peak": rate} for values, rate in rates])
    steps, step, distances = options.epochs * math.ceil(len(images) / options.batch), 0, []
    with tqdm(total=steps, unit="batch", desc="training with rounding", leave=False, disable=None) as bar:
        for epoch in range(options.epochs):
            found = []
            for inputs in _batches(images, options, epoch):
                step += 1
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * (1 + math.cos(math.pi * step / steps)) / 2
                found.append(_step(student, teacher, plan, scales, optimizer, torch.from_numpy(inputs).to(device)))
                bar.update()
            distances.append(float(np.mean(found)))
            log.info("epoch %d/%d  distance to the float model %.4f", epoch + 1, options.epochs, distances[-1])
    weights = {name: value.cpu() for name, value in unfolded_weights(student, model).items()}
    return Finetuned(weights, {scale: math.exp(value.item()) for scale, value in scales.items()}, distances)


def _batches(
    images: Sequence[Callable[[], NDArray[np.float32]]], options: FinetuneOptions, epoch: int
) -> Iterator[NDArray[np.float32]]:
    order = np.random.default_rng((options.seed, epoch)).permutation(len(images)).tolist()
    for start in range(0, len(order), options.batch):
        yield np.concatenate([images[index]() for index in order[start : start + options.batch]])


def _step(
    student: DetectorModel,
    teacher: DetectorModel,
    plan: QuantPlan,
    scales: dict[Scale, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
) -> float:
    """Updates weights and scales by one batch; returns its distance."""
    try:
        with torch.no_grad():
            wanted = teacher.maps(inputs)
        optimizer.zero_grad()
        with FakeQuantization(student, plan, {scale: value.exp() for scale, value in scales.items()}):
            found = student.maps(inputs)
        distance = torch.stack([_distance(one, other) for one, other in zip(found, wanted)]).mean()
        distance.backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"{len(inputs)} images do not fit into the memory of {inputs.device}; use a smaller --batch"
        ) from error
    value = distance.item()
    if not math.isfinite(value):
        raise CheckFailed(f"training with rounding diverged (distance {value}); use a lower --learning-rate")
    torch.nn.utils.clip_grad_norm_(student.parameters(), _CLIP)
    optimizer.step()
    return value


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Returns the squared difference of maps `[N, C, H, W]` in the variances of their channels, in the mean."""
    variance = wanted.var(dim=(0, 2, 3), keepdim=True)
    return ((found - wanted).square() / (variance + _SMALLEST_VARIANCE)).mean()
