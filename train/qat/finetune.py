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
from runtime.spec import ModelSpec
from train.distributed import World
from train.losses.yolo_targets import box_iou
from train.memory import is_out_of_memory, keep_freed_memory
from train.model import DetectorModel
from train.model.folding import fold_batch_norm, unfolded_weights
from train.qat.fake_quant import FakeQuantization, learnable_scales, scale_layers
from train.qat.plan import QuantPlan, Scale
from train.run.device import choose_device

log = logging.getLogger(__name__)

_CLIP = 10.0
_MAX_LOG_SIDE = 10.0  # beyond, a box covers every image

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
    learning_rate: float = 2e-5
    scale_rate: float = 2e-3
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
    spec: ModelSpec,
    options: FinetuneOptions,
) -> Finetuned:
    """Trains a copy of a model with fake quantization; weights and the scales of activations are learned.

    The model itself is the teacher, so no labels are needed: the loss is the change of the scores and the boxes that it
    computes. The batch norms are folded into the convolutions first, so that the weights that are rounded in training
    are those that will be rounded in the file. What is returned had the least error on images that are not trained on.

    Args:
        model: the float model, in evaluation mode.
        plan: what to quantize.
        images: to train on.
        held: others, to choose the epoch by.
        error_from: makes the error to choose by of the float model's outputs of `held`.
        spec: of the model.
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
                found.append(_step(rounded, teacher, optimizer, torch.from_numpy(inputs).to(device), spec))
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
    """Yields the images in another order each epoch, half of them mirrored, since few are soon known by heart."""
    rng = np.random.default_rng((options.seed, epoch))
    order, mirrored = rng.permutation(len(images)).tolist(), rng.random(len(images)) < 0.5
    for start in range(0, len(order), options.batch):
        chosen = order[start : start + options.batch]
        yield np.concatenate([images[index]()[..., :: -1 if mirrored[index] else 1] for index in chosen])


def _step(rounded: Maps, teacher: DetectorModel, optimizer: torch.optim.Optimizer, inputs: Tensor, spec: ModelSpec) -> float:
    """Updates weights and scales by one batch; returns its distance."""
    try:
        with torch.no_grad():
            wanted = teacher.maps(inputs)
        optimizer.zero_grad()
        distance = _distance(rounded(inputs), wanted, spec)
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


def _distance(found: Sequence[Tensor], wanted: Sequence[Tensor], spec: ModelSpec) -> Tensor:
    """Returns how far the candidates of raw maps are from those wanted, over the sum of the scores wanted.

    It is that of `calibration.detection_error` in a form that has a gradient: the changes of a candidate's scores, of all
    classes, and the larger of its two best scores times 1 - IoU of its two boxes.

    Args:
        found: maps of each level, `[N, A * (5 + C), H, W]`.
        wanted: likewise.
        spec: with the anchors and strides of the levels.
    """
    changed, total = [], []
    for one, other, anchors, stride in zip(found, wanted, spec.anchors, spec.strides):
        sides = one.new_tensor(anchors).reshape(1, -1, 2, 1, 1) / stride
        boxes, scores = zip(*(_candidates(maps, sides) for maps in (one, other)))
        best, reference = (item.amax(dim=2) for item in scores)
        overlap = box_iou(*boxes)
        changed.append(
            ((scores[0] - scores[1]).abs().sum(dim=2) + torch.maximum(best, reference).detach() * (1 - overlap)).sum()
        )
        total.append(reference.sum())
    return torch.stack(changed).sum() / (torch.stack(total).sum() + 1)  # an image may have no object


def _candidates(maps: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Decodes raw maps; returns boxes (x, y, w, h) `[N, A, H, W, 4]` in cells, from their own, and scores `[N, A, C, H, W]`."""
    logits = maps.reshape(len(maps), sides.shape[1], -1, *maps.shape[2:])
    centers, logs = logits[:, :, :2].sigmoid(), logits[:, :, 2:4].clamp(max=_MAX_LOG_SIDE)
    boxes = torch.cat([centers, sides * logs.exp()], dim=2).movedim(2, -1)
    return boxes, logits[:, :, 4:5].sigmoid() * logits[:, :, 5:].sigmoid()
