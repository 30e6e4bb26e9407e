"""Computes YOLOv3's loss per level: anchor shape, box IoU, offset, objectness, classes (paper sections 2 and 3).

No shape in here depends on a value on the device, so a step never waits for it: `YoloMatcher` makes what labels alone decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from train.config import LossConfig
from train.losses.head_output import HeadOutput, upcast
from train.losses.packing import PackedTargets, Unpacker, pack
from train.losses.yolo_targets import AnchorSet, Labels, LevelTargets, assign, box_iou, level_targets, match, shape_iou

COMPONENTS = ("anchor", "iou", "offset", "objectness", "classes")


@dataclass(frozen=True)
class YoloMatcher:
    """Makes the targets of a batch that labels alone decide; see `train.losses.packing.Matcher`.

    Attributes:
        anchors: of all levels.
        config: options of the loss.
    """

    anchors: AnchorSet
    config: LossConfig

    def __call__(self, labels: Tensor, size: tuple[int, int]) -> PackedTargets:
        """See `train.losses.packing.Matcher`."""
        real = match(labels, self.anchors)
        levels = [
            level_targets(
                real,
                self.anchors,
                level,
                (size[0] // stride, size[1] // stride),
                self.config.ignore_iou,
                self.config.ignore_area,
            )
            for level, stride in enumerate(self.anchors.strides)
        ]
        return pack([real, *levels, torch.tensor(self.anchors.per_level)])


def detection_loss(
    outputs: Sequence[HeadOutput],
    targets: Tensor | PackedTargets,
    anchors: AnchorSet,
    num_classes: int,
    config: LossConfig,
    normalizer: Tensor | None = None,
) -> dict[str, Tensor]:
    """Computes the loss components, each summed over levels and divided by the batch size.

    Args:
        outputs: one per level, coarsest first.
        targets: from `YoloMatcher`, on the device of the outputs; or labels `[N, M, 5 or 6]` (class, cx, cy, w, h in input
            pixels[, mixing weight]; all-zero rows are padding), which are matched here first.
        anchors: of all levels.
        num_classes: C.
        config: switches of the loss.
        normalizer: what to divide by instead of the batch size, where these images are a part of a batch.

    Returns:
        Scalars by the names of `COMPONENTS`, and their `total`.
    """
    raw, stride = outputs[0].raw, anchors.strides[0]
    if isinstance(targets, Tensor):
        matcher = YoloMatcher(anchors, config)
        targets = matcher(targets.cpu(), (raw.shape[2] * stride, raw.shape[3] * stride)).to(raw.device)
    unpacker = Unpacker(targets)
    labels = unpacker.take(Labels)
    per_level = [unpacker.take(LevelTargets) for _ in outputs]
    sides = unpacker.tensor()
    levels = [
        _LevelLoss(output, labels, per_level[level], sides[level], anchors.strides[level], num_classes, config)
        for level, output in enumerate(outputs)
    ]
    divisor = len(raw) if normalizer is None else normalizer
    losses = {name: torch.stack([getattr(level, name)() for level in levels]).sum() / divisor for name in COMPONENTS}
    losses["total"] = torch.stack(list(losses.values())).sum()
    return losses


class _LevelLoss:
    """Loss of one level.

    Only objectness is needed at every anchor; everything else at the few anchors that labels touch.
    """

    def __init__(
        self,
        output: HeadOutput,
        labels: Labels,
        targets: LevelTargets,
        anchors: Tensor,
        stride: int,
        num_classes: int,
        config: LossConfig,
    ) -> None:
        output = HeadOutput(_dense(output.raw), output.guide)
        self.output, self.labels, self.targets, self.config = output, labels, targets, config
        self.anchors, self.stride, self.num_classes = anchors, stride, num_classes
        height, width = output.raw.shape[2:]
        self.assignment = assign(labels, targets, stride, output.raw, output.guide)
        self.objectness_logits, self.chosen_logits = _gather(output.raw, self.assignment.chosen, 5 + num_classes)
        self.own = labels.boxes[targets.own]
        self.chosen_sides = self._sides(self.assignment.chosen)
        weights = 2 - self.own[:, 2:].prod(dim=1) / float(height * width * stride**2)
        self.box_weights = torch.where(self.assignment.wins, weights, 0.0)

    def _sides(self, elements: Tensor) -> Tensor:
        """(Guided) anchor sides in pixels, `[K, 2]`, of elements `[K, 4]`."""
        image, anchor, row, column = elements.unbind(dim=1)
        base = self.anchors[anchor]
        if self.output.guide is None:
            return base
        channels = torch.stack([2 * anchor, 2 * anchor + 1], dim=1)
        return base * upcast(self.output.guide[image[:, None], channels, row[:, None], column[:, None]]).exp()

    def anchor(self) -> Tensor:
        """1 - IoU^2 of guided anchor and label shape, where a label's box is written."""
        if self.output.guide is None:
            return self.objectness_logits.new_zeros(())
        sides = self._sides(self.targets.written)
        ious: Tensor = shape_iou(sides, self.labels.boxes[self.targets.written_by, 2:])
        return (1 - ious**2).sum()

    def iou(self) -> Tensor:
        """1 - IoU^2 of decoded box and label at the chosen element; small boxes weigh more."""
        if not self.config.iou_loss:
            return self.objectness_logits.new_zeros(())
        boxes = _decode(self.chosen_logits, self.assignment.chosen, self.chosen_sides, self.stride)
        ious = box_iou(boxes, self.labels.boxes[self.assignment.box])
        return (self.box_weights * (1 - ious**2)).sum()

    def offset(self) -> Tensor:
        """BCE of the position in the cell plus L1 of the log sides over the guided anchor; the logarithm is not detached."""
        position = self.own[:, :2] / self.stride - self.assignment.chosen[:, 2:].flip(1)
        sides = torch.log(self.own[:, 2:] / self.chosen_sides + 1e-12)
        logits, position = self.chosen_logits, position.to(self.chosen_logits.dtype)
        entropy = functional.binary_cross_entropy_with_logits(logits[:, :2], position, reduction="none")
        distance = (logits[:, 2:4] - sides).abs()
        return (self.box_weights * (entropy + distance).sum(dim=1)).sum()

    def objectness(self) -> Tensor:
        """BCE over every anchor; chosen ones have the mixing weight.

        Background that overlaps a label well or lies in an ignore area is left out.
        """
        logits = self.objectness_logits
        last = logits.shape[0]  # a place behind the elements, for what is not to be written
        target, weight = logits.new_zeros(last + 1), logits.new_ones(last + 1)
        keys, overlapping = well_overlapping(self.output, self.labels, self.targets, self.anchors, self.stride, self.config)
        weight.index_fill_(0, torch.where(overlapping, keys, last), 0)
        height, width = self.output.raw.shape[2:]
        image, row, column = self.targets.ignored.unbind(dim=1)
        planes = image[:, None] * len(self.anchors) + torch.arange(len(self.anchors), device=image.device)
        weight.index_fill_(0, ((planes * height + row[:, None]) * width + column[:, None]).flatten(), 0)
        chosen = torch.where(self.assignment.wins, self.assignment.keys, last)
        target.index_fill_(0, chosen, 1)
        weight.index_copy_(0, chosen, self.labels.weights[self.targets.own].to(weight.dtype))
        return functional.binary_cross_entropy_with_logits(logits, target[:last], weight[:last], reduction="sum")

    def classes(self) -> Tensor:
        """BCE of the chosen elements' classes, smoothed or not."""
        logits = self.chosen_logits[:, 5:]
        true = self.labels.class_ids[self.targets.own]
        if self.config.label_smoothing:  # a later label replaces the row
            target = torch.full_like(logits, 1 / self.num_classes).scatter_(1, true[:, None], 1 - 1 / self.num_classes)
        else:  # a later label adds its bit
            target = torch.zeros_like(logits)
            target.view(-1).index_fill_(0, self.assignment.winner * self.num_classes + true, 1)
        wins = self.assignment.wins[:, None].to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, target, wins, reduction="sum")


def _gather(raw: Tensor, chosen: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Applies `_Gather`."""
    objectness, logits = _Gather.apply(raw, chosen, depth)  # type: ignore[no-untyped-call]
    return objectness, logits


class _Gather(torch.autograd.Function):
    """Reads the objectness of every element and all logits of the chosen ones, in any memory format.

    As one function, so that the backward pass fills the large gradient map once.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, chosen: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Returns objectness logits `[N * A * H * W]` and `[K, depth]`, float32 at least.

        Args:
            ctx: of the function.
            raw: `[N, A * depth, H, W]`.
            chosen: int64 `[K, 4]` (image, anchor, row, column).
            depth: 5 + C.
        """
        places = _places(raw, chosen, depth, depth)
        ctx.save_for_backward(raw, places)
        ctx.depth = depth
        return upcast(raw[:, 4::depth].flatten()), upcast(_flat(raw)[places])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, objectness: Tensor, chosen: Tensor) -> tuple[Tensor, None, None]:
        """Returns the gradient of `raw`."""
        raw, places = ctx.saved_tensors
        gradient = torch.zeros_like(raw)
        everywhere = gradient[:, 4 :: ctx.depth]
        everywhere.copy_(objectness.view(everywhere.shape))
        _flat(gradient).scatter_add_(0, places.flatten(), chosen.to(raw.dtype).flatten())
        return gradient, None, None


def _flat(raw: Tensor) -> Tensor:
    """Views a map in the order of its memory."""
    return torch.as_strided(raw, (raw.numel(),), (1,), raw.storage_offset())


def _places(raw: Tensor, elements: Tensor, depth: int, wanted: int) -> Tensor:
    """Returns where the first logits of elements `[K, 4]` lie in `_flat(raw)`: int64 `[K, wanted]`."""
    image, anchor, row, column = elements.unbind(dim=1)
    strides = raw.stride()
    starts = image * strides[0] + anchor * (depth * strides[1]) + row * strides[2] + column * strides[3]
    return starts[:, None] + torch.arange(wanted, device=raw.device) * strides[1]


def _decode(logits: Tensor, elements: Tensor, sides: Tensor, stride: int) -> Tensor:
    """Decodes logits `[K, 4+]` at elements `[K, 4]` with (guided) anchors `[K, 2]` to cxcywh `[K, 4]` in input pixels."""
    centers = (torch.sigmoid(logits[:, :2]) + elements[:, 2:].flip(1)) * stride
    return torch.cat([centers, sides * torch.exp(logits[:, 2:4])], dim=1)


@torch.no_grad()
def well_overlapping(
    output: HeadOutput, labels: Labels, targets: LevelTargets, anchors: Tensor, stride: int, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Tests the elements in the windows of the labels for a decoded box that overlaps the label well.

    Args:
        output: of the level, its map without gaps in memory.
        labels: of the batch.
        targets: of the level; with the windows.
        anchors: `[A, 2]`, of the level, in pixels.
        stride: of the level.
        config: with the least IoU.

    Returns:
        int64 `[E]`, the elements as numbers (see `flat_keys`), and bool `[E]`, True where the IoU is above `ignore_iou`.
    """
    count, (height, width) = len(anchors), output.raw.shape[2:]
    areas = targets.window[:, 3]
    order = torch.arange(len(areas), device=areas.device)
    label = torch.repeat_interleave(order, areas, output_size=targets.elements)
    starts = torch.cat([areas.cumsum(0) - areas, labels.image], 0).view(2, -1)
    left, top, columns, _, start, image = torch.cat([targets.window.t(), starts])[:, label]
    within = torch.arange(targets.elements, device=areas.device) - start
    cell = within // count
    anchor = within - cell * count
    below = cell // columns
    row, column = top + below, left + cell - below * columns

    elements = torch.stack([image, anchor, row, column], dim=1)
    depth = output.raw.shape[1] // count
    logits = upcast(_flat(output.raw)[_places(output.raw, elements, depth, 4)])
    if output.guide is not None:
        guide = _dense(output.guide)
        logits[:, 2:] += upcast(_flat(guide)[_places(guide, elements, 2, 2)])
    boxes = _decode(logits, elements, anchors[anchor], stride)
    keys = ((image * count + anchor) * height + row) * width + column
    return keys, box_iou(boxes, labels.boxes[label]) > config.ignore_iou


def _dense(raw: Tensor) -> Tensor:
    """Returns the map without gaps in its memory."""
    return raw if raw.is_contiguous() or raw.is_contiguous(memory_format=torch.channels_last) else raw.contiguous()
