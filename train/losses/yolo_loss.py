"""Computes YOLOv3's loss per level: anchor shape, box IoU, offset, objectness, classes (paper sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from train.config import LossConfig
from train.losses.head_output import HeadOutput
from train.losses.yolo_targets import AnchorSet, Assignment, Labels, assign, box_iou, match, neighboring_cells, shape_iou

COMPONENTS = ("anchor", "iou", "offset", "objectness", "classes")


def detection_loss(
    outputs: Sequence[HeadOutput], labels: Tensor, anchors: AnchorSet, num_classes: int, config: LossConfig
) -> dict[str, Tensor]:
    """Computes the loss components, each summed over levels and divided by the batch size.

    Args:
        outputs: one per level, coarsest first.
        labels: `[N, M, 5 or 6]` (class, cx, cy, w, h in input pixels[, mixing weight]); all-zero rows are padding.
        anchors: of all levels.
        num_classes: C.
        config: switches of the loss.

    Returns:
        Scalars by the names of `COMPONENTS`, and their `total`.
    """
    real = match(labels, anchors)
    batch = outputs[0].raw.shape[0]
    levels = [_LevelLoss(output, level, real, anchors, num_classes, config) for level, output in enumerate(outputs)]
    losses = {name: torch.stack([getattr(level, name)() for level in levels]).sum() / batch for name in COMPONENTS}
    losses["total"] = torch.stack(list(losses.values())).sum()
    return losses


class _LevelLoss:
    """Loss of one level.

    Only objectness is needed at every anchor; everything else at the few anchors that labels touch. Both come out of one
    gather, so that the backward pass fills the large gradient map once.
    """

    def __init__(
        self, output: HeadOutput, level: int, labels: Labels, anchors: AnchorSet, num_classes: int, config: LossConfig
    ) -> None:
        self.output, self.labels, self.config, self.num_classes = output, labels, config, num_classes
        self.stride = anchors.strides[level]
        self.anchors = output.raw.new_tensor(anchors.per_level[level], dtype=torch.float32)
        height, width = output.raw.shape[2:]
        self.image_area = float(height * width * self.stride**2)
        self.assignment: Assignment = assign(labels, anchors, level, (height, width), output.guide)
        self.ignored = labels.image.new_zeros((0, 3))
        if config.ignore_area is not None:
            self.ignored = neighboring_cells(labels, anchors, level, (height, width), config.ignore_area)
        self.objectness_logits, self.chosen_logits = self._gather()
        self.box_weights = 2 - labels.boxes[self.assignment.chosen_by, 2:].prod(dim=1) / self.image_area

    def _gather(self) -> tuple[Tensor, Tensor]:
        """Objectness logits `[N * A * H * W]` of every element, and all logits `[K, 5 + C]` of the chosen ones, float32."""
        raw = self.output.raw
        height, width = raw.shape[2:]
        cells, depth = height * width, 5 + self.num_classes
        planes = torch.arange(raw.shape[0] * len(self.anchors), device=raw.device) * depth * cells
        everywhere = (planes[:, None] + 4 * cells + torch.arange(cells, device=raw.device)).flatten()
        image, anchor, row, column = self.assignment.chosen.unbind(dim=1)
        starts = planes[image * len(self.anchors) + anchor] + row * width + column
        chosen = (starts[:, None] + torch.arange(depth, device=raw.device) * cells).flatten()
        values = raw.flatten()[torch.cat([everywhere, chosen])].float()
        return values[: len(everywhere)], values[len(everywhere) :].reshape(-1, depth)

    def _sides(self, elements: Tensor) -> Tensor:
        """(Guided) anchor sides in pixels, `[K, 2]`, of elements `[K, 4]`."""
        image, anchor, row, column = elements.unbind(dim=1)
        base = self.anchors[anchor]
        if self.output.guide is None:
            return base
        channels = 2 * anchor[:, None] + torch.arange(2, device=anchor.device)
        guide = self.output.guide[image[:, None], channels, row[:, None], column[:, None]].float()
        return base * guide.exp()

    def anchor(self) -> Tensor:
        """1 - IoU^2 of guided anchor and label shape, where a label's box is written."""
        if self.output.guide is None:
            return self.objectness_logits.new_zeros(())
        sides = self._sides(self.assignment.written)
        return (1 - shape_iou(sides, self.labels.boxes[self.assignment.written_by, 2:]) ** 2).sum()

    def iou(self) -> Tensor:
        """1 - IoU^2 of decoded box and label at the chosen element; small boxes weigh more."""
        if not self.config.iou_loss:
            return self.objectness_logits.new_zeros(())
        boxes = _decode(self.chosen_logits, self.assignment.chosen, self._sides(self.assignment.chosen), self.stride)
        ious = box_iou(boxes, self.labels.boxes[self.assignment.chosen_box])
        return (self.box_weights * (1 - ious**2)).sum()

    def offset(self) -> Tensor:
        """BCE of the position in the cell plus L1 of the log sides over the guided anchor; the logarithm is not detached."""
        boxes, cells = self.labels.boxes[self.assignment.chosen_by], self.assignment.chosen[:, [3, 2]]
        position = boxes[:, :2] / self.stride - cells
        sides = torch.log(boxes[:, 2:] / self._sides(self.assignment.chosen) + 1e-12)
        entropy = functional.binary_cross_entropy_with_logits(self.chosen_logits[:, :2], position, reduction="none")
        distance = (self.chosen_logits[:, 2:4] - sides).abs()
        return (self.box_weights * (entropy + distance).sum(dim=1)).sum()

    def objectness(self) -> Tensor:
        """BCE over every anchor; chosen ones have the mixing weight.

        Background that overlaps a label well or lies in an ignore area is left out.
        """
        logits = self.objectness_logits
        target, weight = torch.zeros_like(logits), torch.ones_like(logits)
        height, width = self.output.raw.shape[2:]
        shape = (-1, len(self.anchors), height, width)
        overlapping = well_overlapping(self.output, self.labels, self.anchors, self.stride, self.config.ignore_iou)
        weight.view(shape)[overlapping.unbind(dim=1)] = 0
        image, row, column = self.ignored.unbind(dim=1)
        weight.view(shape)[image, :, row, column] = 0
        chosen = self.assignment.chosen.unbind(dim=1)
        target.view(shape)[chosen] = 1
        weight.view(shape)[chosen] = self.labels.weights[self.assignment.chosen_by]
        return functional.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")

    def classes(self) -> Tensor:
        """BCE of the chosen elements' classes, smoothed or not."""
        target = torch.zeros_like(self.chosen_logits[:, 5:])
        if self.config.label_smoothing:  # a later label replaces the row
            target.fill_(1 / self.num_classes)
            true = self.labels.class_ids[self.assignment.chosen_by]
            target[torch.arange(len(target), device=target.device), true] = 1 - 1 / self.num_classes
        else:  # a later label adds its bit
            element, label = self.assignment.pairs.unbind(dim=1)
            target[element, self.labels.class_ids[label]] = 1
        return functional.binary_cross_entropy_with_logits(self.chosen_logits[:, 5:], target, reduction="sum")


def _decode(logits: Tensor, elements: Tensor, sides: Tensor, stride: int) -> Tensor:
    """Decodes logits `[K, 4+]` at elements `[K, 4]` with (guided) anchors `[K, 2]` to cxcywh `[K, 4]` in input pixels."""
    centers = (torch.sigmoid(logits[:, :2]) + elements[:, [3, 2]]) * stride
    return torch.cat([centers, sides * torch.exp(logits[:, 2:4])], dim=1)


@torch.no_grad()
def well_overlapping(output: HeadOutput, labels: Labels, anchors: Tensor, stride: int, threshold: float) -> Tensor:
    """Finds the elements int64 `[K, 4]` whose decoded box has an IoU above `threshold` with a label of their image.

    A box can only overlap a label so well if its center is near the label's. Along an axis, let I be the overlap of the two
    intervals and H their hull. IoU > t gives I > t * H, and the centers are at most (H - I) / 2 apart when they merely
    overlap or one holds the other; with I <= side that is below (1 / t - 1) / 2 * side. A box's center lies in its
    own cell, so only the cells in that window are decoded: the result is exact, at a small share of the cost.
    """
    count, (height, width) = len(anchors), output.raw.shape[2:]
    reach = (1 / threshold - 1) / 2 * labels.boxes[:, 2:]
    limit = torch.tensor([width, height], device=reach.device)
    # One cell of margin keeps rounding harmless.
    low = ((labels.boxes[:, :2] - reach) / stride).floor().long().sub(1).clamp(min=0).minimum(limit - 1)
    high = ((labels.boxes[:, :2] + reach) / stride).floor().long().add(1).clamp(min=0).minimum(limit - 1)
    spans = high - low + 1  # [P, 2] columns, rows
    areas = spans.prod(dim=1) * count
    label = torch.repeat_interleave(torch.arange(len(areas), device=areas.device), areas)
    within = torch.arange(len(label), device=areas.device) - (areas.cumsum(0) - areas)[label]
    anchor = within % count
    cell = within // count
    column = low[label, 0] + cell % spans[label, 0]
    row = low[label, 1] + cell // spans[label, 0]
    elements = torch.stack([labels.image[label], anchor, row, column], dim=1)

    depth = output.raw.shape[1] // count
    image = elements[:, 0]
    logits = torch.stack([output.raw[image, anchor * depth + i, row, column] for i in range(4)], dim=1).float()
    if output.guide is not None:
        logits[:, 2] += output.guide[image, 2 * anchor, row, column].float()
        logits[:, 3] += output.guide[image, 2 * anchor + 1, row, column].float()
    boxes = _decode(logits, elements, anchors[anchor], stride)
    return elements[box_iou(boxes, labels.boxes[label]) > threshold]
