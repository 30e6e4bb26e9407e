"""Assigns labels to anchors and cells (paper section 2 and its guided anchoring)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

from runtime.spec import Anchors
from train.losses.head_output import upcast

IOU_EPSILON = 1e-16  # added to the union
ANCHOR_FREE_SIDE = 4  # the anchor-free anchor is 4 strides wide and high


@dataclass(frozen=True)
class AnchorSet:
    """Anchors of all levels.

    Attributes:
        base: (width, height) in pixels of the base anchors, small to large; the coarsest level takes the last ones.
        strides: of the levels, coarsest first.
        guided: True if each level has an anchor-free anchor behind its base ones.
    """

    base: tuple[tuple[float, float], ...]
    strides: tuple[int, ...]
    guided: bool

    @classmethod
    def from_base(cls, base: Sequence[Sequence[float]], strides: Sequence[int], guided: bool) -> AnchorSet:
        if len(base) % len(strides):
            raise ValueError(f"anchors: expected a multiple of {len(strides)}, got {len(base)}")
        return cls(tuple((float(w), float(h)) for w, h in base), tuple(strides), guided)

    @property
    def base_per_level(self) -> int:
        """Base anchors of a level (3)."""
        return len(self.base) // len(self.strides)

    @property
    def per_level(self) -> Anchors:
        """Per level, its anchors in channel order: base ones small to large, then the anchor-free one."""
        levels = []
        for level, stride in enumerate(self.strides):
            free = ((float(ANCHOR_FREE_SIDE * stride),) * 2,) if self.guided else ()
            levels.append((*self.base[self.first(level) : self.first(level) + self.base_per_level], *free))
        return tuple(levels)

    def level_of(self, anchor: Tensor) -> Tensor:
        """The level that each base anchor (int64 indices into `base`) belongs to."""
        return len(self.strides) - 1 - anchor // self.base_per_level

    def first(self, level: int) -> int:
        """Index in `base` of a level's first anchor."""
        return (len(self.strides) - 1 - level) * self.base_per_level


@dataclass(frozen=True)
class Labels:
    """The real labels of a batch, padding removed, in image order and within an image in their own order.

    Attributes:
        image: int64 `[P]`, which image of the batch.
        boxes: float32 `[P, 4]` cxcywh in input pixels.
        class_ids: int64 `[P]`.
        weights: float32 `[P]`, mixing weights.
        anchor: int64 `[P]`, index in `AnchorSet.base` of the best base anchor by shape.
        anchor_iou: float32 `[P]`, its shape IoU.
    """

    image: Tensor
    boxes: Tensor
    class_ids: Tensor
    weights: Tensor
    anchor: Tensor
    anchor_iou: Tensor


def match(labels: Tensor, anchors: AnchorSet) -> Labels:
    """Finds the best base anchor of each label of padded labels `[N, M, 5 or 6]` (class, cx, cy, w, h[, mixing weight]).

    The shape IoU is that of boxes at the origin; the first anchor wins a tie.
    """
    image, real = unpad(labels)
    base = torch.tensor(anchors.base, device=labels.device)
    ious = shape_iou(real[:, None, 3:5], base[None])
    best, anchor = ious.max(dim=1) if len(real) else (real.new_zeros(0), image)
    return Labels(image, real[:, 1:5], real[:, 0].long(), real[:, 5], anchor, best)


def unpad(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Removes the padding of labels `[N, M, 5 or 6]`; returns their image int64 `[P]`, ascending, and rows float32 `[P, 6]`.

    A row is (class, cx, cy, w, h, mixing weight), the weight 1 where none was given; all-zero rows are padding.
    """
    image, row = torch.nonzero(labels.abs().sum(dim=2) > 0, as_tuple=True)
    real = labels[image, row].float()
    return image, real if labels.shape[2] > 5 else functional.pad(real, (0, 1), value=1.0)


@dataclass(frozen=True)
class LevelTargets:
    """Targets of one level that follow from the labels alone. An element is one anchor of one cell of one image.

    Labels are written in their order and later ones win.

    Attributes:
        own: int64 `[K]`, index into `Labels` of the labels whose best base anchor is of this level.
        cell: int64 `[K, 4]` (image, base anchor within the level, row, column) of each of them.
        own_box: int64 `[K]`, index into `Labels` of the last label that writes its box at that base anchor.
        free_box: int64 `[K]`, the same at the cell's anchor-free anchor.
        written: int64 `[B, 4]` (image, anchor, row, column), elements that hold a label's box.
        written_by: int64 `[B]`, index into `Labels` of the last label that wrote there.
        window: int64 `[P, 4]` (first column, first row, columns, elements) of all labels, see `overlap_windows`.
        elements: sum of the elements of all windows.
        ignored: int64 `[I, 3]` (image, row, column) of the ignore area.
    """

    own: Tensor
    cell: Tensor
    own_box: Tensor
    free_box: Tensor
    written: Tensor
    written_by: Tensor
    window: Tensor
    elements: int
    ignored: Tensor


def level_targets(
    labels: Labels, anchors: AnchorSet, level: int, size: tuple[int, int], ignore_iou: float, ignore_area: Optional[float]
) -> LevelTargets:
    """Makes the targets of one level.

    Args:
        labels: of the batch.
        anchors: of all levels.
        level: index of the level, coarsest first.
        size: (rows, columns) of the level's map.
        ignore_iou: see `LossConfig`.
        ignore_area: see `LossConfig`.
    """
    stride, count = anchors.strides[level], len(anchors.per_level[level])
    own = torch.nonzero(anchors.level_of(labels.anchor) == level)[:, 0]
    row, column = _center_cells(labels.boxes[own], stride, size)
    cell = torch.stack([labels.image[own], labels.anchor[own] - anchors.first(level), row, column], dim=1)
    free = cell.clone()
    free[:, 1] = anchors.base_per_level
    writes = torch.cat([cell, free] if anchors.guided else [cell])
    distinct, inverse = torch.unique(flat_keys(writes, count, size), return_inverse=True)
    by = own.repeat(2 if anchors.guided else 1)
    written_by = torch.zeros_like(distinct).scatter_reduce(0, inverse, by, "amax", include_self=False)
    window, elements = overlap_windows(labels.boxes, stride, size, count, ignore_iou)
    ignored = labels.image.new_zeros((0, 3))
    if ignore_area is not None:
        ignored = neighboring_cells(labels, anchors, level, size, ignore_area)
    boxes = written_by[inverse]
    return LevelTargets(
        own=own,
        cell=cell,
        own_box=boxes[: len(own)],
        free_box=boxes[-len(own) :] if len(own) else boxes,
        written=elements_of(distinct, count, size),
        written_by=written_by,
        window=window,
        elements=elements,
        ignored=ignored,
    )


def flat_keys(elements: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """Numbers the elements `[..., 4]` (image, anchor, row, column) of a level of `count` anchors: int64 `[...]`."""
    image, anchor, row, column = elements.unbind(dim=-1)
    return ((image * count + anchor) * size[0] + row) * size[1] + column


def elements_of(keys: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """Inverts `flat_keys`."""
    anchor = keys // (size[0] * size[1])
    return torch.stack([anchor // count, anchor % count, keys // size[1] % size[0], keys % size[1]], dim=1)


@dataclass(frozen=True)
class Assignment:
    """Anchors that the labels of a level choose, which depends on the guided anchor-free anchors.

    Attributes:
        chosen: int64 `[K, 4]`, the element that each label of `LevelTargets.own` chose; doubled where labels agree.
        keys: int64 `[K]`, the same as numbers, see `flat_keys`.
        winner: int64 `[K]`, index into `chosen` of the last label that chose the same element.
        wins: bool `[K]`, True where that is the label itself.
        box: int64 `[K]`, index into `Labels` of the label whose box is written there.
    """

    chosen: Tensor
    keys: Tensor
    winner: Tensor
    wins: Tensor
    box: Tensor


def assign(labels: Labels, targets: LevelTargets, stride: int, output: Tensor, guide: Optional[Tensor]) -> Assignment:
    """Chooses anchors at one level, without waiting for a GPU: no shape depends on a value.

    The label's cell holds its center. Its best base anchor decides the level; there, the guided anchor-free anchor replaces
    it where it fits the label's shape better than that *base* anchor does.

    Args:
        labels: of the batch.
        targets: of the level.
        stride: of the level in pixels.
        output: `[N, A * (5 + C), rows, columns]`, of which the shape alone matters.
        guide: `[N, A * 2, rows, columns]` log sides over the base anchors, or None without guiding.
    """
    size = (output.shape[2], output.shape[3])
    chosen, box, count = targets.cell, targets.own_box, 3
    if guide is not None:
        count = guide.shape[1] // 2
        image, anchor, row, column = chosen.unbind(dim=1)
        free = torch.full_like(anchor, count - 1)
        channels = torch.stack([2 * free, 2 * free + 1], dim=1)
        scale = upcast(guide.detach()[image[:, None], channels, row[:, None], column[:, None]]).exp()
        fits = shape_iou(labels.boxes[targets.own, 2:], ANCHOR_FREE_SIDE * stride * scale) > labels.anchor_iou[targets.own]
        chosen = torch.stack([image, torch.where(fits, free, anchor), row, column], dim=1)
        box = torch.where(fits, targets.free_box, box)
    keys = flat_keys(chosen, count, size)
    order = torch.arange(len(keys), device=keys.device)
    last = keys.new_zeros(output.shape[0] * count * size[0] * size[1]).scatter_reduce_(0, keys, order, "amax")
    winner = last[keys]
    return Assignment(chosen, keys, winner, winner == order, box)


def _center_cells(boxes: Tensor, stride: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns row and column int64 `[P]` of the cells that hold the centers of cxcywh boxes `[P, 4]`, kept inside the map."""
    column = (boxes[:, 0] / stride).floor().long().clamp(0, size[1] - 1)
    row = (boxes[:, 1] / stride).floor().long().clamp(0, size[0] - 1)
    return row, column


def overlap_windows(boxes: Tensor, stride: int, size: tuple[int, int], count: int, threshold: float) -> tuple[Tensor, int]:
    """Finds the cells from which a decoded box can have an IoU above `threshold` with each label.

    A box can only overlap a label so well if its center is near the label's. Along an axis, let I be the overlap of the two
    intervals and H their hull. IoU > t gives I > t * H, and the centers are at most (H - I) / 2 apart when they merely
    overlap or one holds the other; with I <= side that is below (1 / t - 1) / 2 * side. A box's center lies in its
    own cell, so only the cells in that window are to be decoded: the result is exact, at a small share of the cost.

    Args:
        boxes: `[P, 4]` cxcywh in input pixels.
        stride: of the level.
        size: (rows, columns) of its map.
        count: of anchors at a cell.
        threshold: of the IoU.

    Returns:
        int64 `[P, 4]` (first column, first row, columns, elements: `count` for each cell), and the sum of the elements.
    """
    reach = (1 / threshold - 1) / 2 * boxes[:, 2:]
    limit = torch.tensor([size[1] - 1, size[0] - 1], device=boxes.device)
    # One cell of margin keeps rounding harmless.
    low = ((boxes[:, :2] - reach) / stride).floor().long().sub(1).clamp(min=0).minimum(limit)
    high = ((boxes[:, :2] + reach) / stride).floor().long().add(1).clamp(min=0).minimum(limit)
    spans = high - low + 1
    elements = spans.prod(dim=1) * count
    return torch.cat([low, spans[:, :1], elements[:, None]], dim=1), int(elements.sum())


def neighboring_cells(labels: Labels, anchors: AnchorSet, level: int, size: tuple[int, int], share: float) -> Tensor:
    """Returns the cells of the ignore area: those of labels of the neighboring levels (Table 2).

    Args:
        labels: of the batch.
        anchors: of all levels.
        level: index of the level, coarsest first.
        size: (rows, columns) of the level's map.
        share: cells whose center lies in the label's box shrunk to this share of its sides; 0: the cell with its center.

    Returns:
        int64 `[K, 3]` (image, row, column).
    """
    near = torch.nonzero((anchors.level_of(labels.anchor) - level).abs() == 1)[:, 0]
    boxes, image, stride = labels.boxes[near], labels.image[near], anchors.strides[level]
    if share == 0:
        return torch.stack([image, *_center_cells(boxes, stride, size)], dim=1)
    rows, columns = (
        ((torch.arange(count, device=boxes.device) + 0.5) * stride - boxes[:, axis, None]).abs()
        <= boxes[:, axis + 2, None] * (share / 2)
        for axis, count in ((1, size[0]), (0, size[1]))
    )
    label, row, column = torch.nonzero(rows[:, :, None] & columns[:, None, :], as_tuple=True)
    return torch.stack([image[label], row, column], dim=1)


def shape_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes with a common corner: (width, height) `[..., 2]` broadcast against `[..., 2]` to `[...]`."""
    intersection = torch.minimum(first, second).prod(dim=-1)
    union = first.prod(dim=-1) + second.prod(dim=-1) - intersection
    return intersection / (union + IOU_EPSILON)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of cxcywh boxes `[..., 4]` row by row, to `[...]`."""
    low = torch.maximum(first[..., :2] - first[..., 2:] / 2, second[..., :2] - second[..., 2:] / 2)
    high = torch.minimum(first[..., :2] + first[..., 2:] / 2, second[..., :2] + second[..., 2:] / 2)
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    union = first[..., 2:].prod(dim=-1) + second[..., 2:].prod(dim=-1) - intersection
    return intersection / (union + IOU_EPSILON)
