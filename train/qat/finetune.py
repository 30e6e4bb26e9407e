"""Trains a detector on with the rounding of INT8 in its network, until it computes again what it computed before."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from runtime.errors import CheckFailed, InputError
from train.distributed import World
from train.memory import is_out_of_memory, keep_freed_memory
from train.model import DetectorModel
from train.model.folding import fold_batch_norm, unfolded_weights
from train.qat.fake_quant import FakeQuantization, learnable_scales, scale_layers
from train.qat.plan import QuantPlan, Scale
from train.run.device import choose_device

log = logging.getLogger(__name__)

_CLIP = 10.0
_SMALLEST_VARIANCE = 1e-6  # of a channel that says the same of every cell
_BACKGROUND = 0.01  # weight of a candidate whose score is 0

Maps = Callable[[Tensor], Sequence[Tensor]]
"""Computes the raw maps of a batch."""

Images = Sequence[Callable[[], NDArray[np.float32]]]
"""Each gives the model's input of an image, float32 `[1, 3, H, W]`."""

Outputs = Sequence[NDArray[np.float32]]
"""Raw maps of one image, each float32 `[1, A * (5 + C), H, W]`."""

Error = Callable[[Iterable[Outputs]], float]
"""Measures how far the outputs of the images are from a reference's; the less, the better."""


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

    epochs: int = 15
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
        errors: of the images held back, with the weights and scales as given and after each epoch; the least one is chosen.
    """

    weights: dict[str, Tensor]
    scales: dict[Scale, float]
    distances: list[float]
    errors: list[float]

    @property
    def epoch(self) -> int:
        """Number of the chosen epoch; 0 for what was given."""
        return self.errors.index(min(self.errors))


def finetune(
    model: DetectorModel,
    plan: QuantPlan,
    images: Images,
    held: Images,
    error_from: Callable[[Iterable[Outputs]], Error],
    options: FinetuneOptions,
) -> Finetuned:
    """Trains a copy of a model with fake quantization; weights and the scales of activations are learned.

    The model itself is the teacher: the loss is the squared difference to its raw maps, relative to the variance of each of
    their channels, and needs no labels. A candidate counts by the teacher's score, since most are background whose boxes
    nobody reads. The batch norms are folded into the convolutions first, so that the weights that are rounded in training
    are those that will be rounded in the file. What is returned had the least error on images that are not trained on.

    Args:
        model: the float model, in evaluation mode.
        plan: what to quantize.
        images: to train on.
        held: others, to choose the epoch by.
        error_from: makes the error to choose by of the float model's outputs of `held`.
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
    scale_layers(student, plan)
    scales = learnable_scales(plan, device)
    rates = ((list(student.parameters()), options.learning_rate), (list(scales.values()), options.scale_rate))
    optimizer = torch.optim.Adam([{"params": values, "lr": rate, "peak": rate} for values, rate in rates])
    error = error_from(_outputs(teacher.maps, held, device))

    def rounded(inputs: Tensor) -> Sequence[Tensor]:
        with FakeQuantization(student, plan, {scale: value.exp() for scale, value in scales.items()}):
            return student.maps(inputs)

    def measure() -> float:
        return error(_outputs(rounded, held, device))

    steps, step, distances, errors = options.epochs * math.ceil(len(images) / options.batch), 0, [], [measure()]
    best, best_scales = _state(student, scales)
    with tqdm(total=steps, unit="batch", desc="training with rounding", leave=False, disable=None) as bar:
        for epoch in range(options.epochs):
            found = []
            for inputs in _batches(images, options, epoch):
                step += 1
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * (1 + math.cos(math.pi * step / steps)) / 2
                found.append(_step(rounded, teacher, optimizer, torch.from_numpy(inputs).to(device)))
                bar.update()
            distances.append(float(np.mean(found)))
            errors.append(measure())
            log.info(
                "epoch %d/%d  distance to the float model %.4f, on %d images held back error %.4f (%.4f as given)",
                *(epoch + 1, options.epochs, distances[-1], len(held), errors[-1], errors[0]),
            )
            if errors[-1] < min(errors[:-1]):
                best, best_scales = _state(student, scales)
    student.load_state_dict(best)
    weights = {name: value.cpu() for name, value in unfolded_weights(student, model).items()}
    return Finetuned(weights, best_scales, distances, errors)


def _state(student: nn.Module, scales: Mapping[Scale, Tensor]) -> tuple[dict[str, Tensor], dict[Scale, float]]:
    """Copies the weights, and the scales of which `scales` are the logarithms."""
    return copy.deepcopy(student.state_dict()), {scale: math.exp(value.item()) for scale, value in scales.items()}


@torch.no_grad()
def _outputs(compute: Maps, images: Images, device: torch.device) -> Iterator[Outputs]:
    for image in images:
        yield [found.cpu().numpy() for found in compute(torch.from_numpy(image()).to(device))]


def _batches(images: Images, options: FinetuneOptions, epoch: int) -> Iterator[NDArray[np.float32]]:
    order = np.random.default_rng((options.seed, epoch)).permutation(len(images)).tolist()
    for start in range(0, len(order), options.batch):
        yield np.concatenate([images[index]() for index in order[start : start + options.batch]])


def _step(rounded: Maps, teacher: DetectorModel, optimizer: torch.optim.Optimizer, inputs: Tensor) -> float:
    """Updates weights and scales by one batch; returns its distance."""
    try:
        with torch.no_grad():
            wanted = teacher.maps(inputs)
        optimizer.zero_grad()
        pairs = zip(rounded(inputs), wanted)
        distance = torch.stack([_distance(*pair, teacher.num_classes) for pair in pairs]).mean()
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
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], _CLIP)  # the weights
    optimizer.step()
    return value


def _distance(found: Tensor, wanted: Tensor, num_classes: int) -> Tensor:
    """Returns the squared difference of maps `[N, A * (5 + C), H, W]`, in the mean.

    Among those of an anchor, a candidate has the weight of its score in `wanted`; all anchors count alike. A channel is
    divided by its variance, with the same weights.
    """
    found, wanted = (maps.reshape(len(maps), -1, 5 + num_classes, *maps.shape[2:]) for maps in (found, wanted))
    chances = wanted[:, :, 4:].sigmoid()
    weights = chances[:, :, :1] * chances[:, :, 1:].amax(2, keepdim=True) + _BACKGROUND
    weights = weights / weights.mean((0, 3, 4), keepdim=True)
    center = (weights * wanted).mean((0, 3, 4), keepdim=True)
    variance = (weights * (wanted - center).square()).mean((0, 3, 4), keepdim=True)
    return (weights * (found - wanted).square() / (variance + _SMALLEST_VARIANCE)).mean()
