"""Assigns labels to anchors and cells (paper section 2 and its guided anchoring)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

from runtime.spec import Anchors

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
class Assignment:
    """Targets of one level. An element is one anchor of one cell of one image.

    Labels are written in their order and later ones win; so an element has one *writer* for its box and, where some label
    chose it, one writer for everything else.

    Attributes:
        written: int64 `[B, 4]` (image, anchor, row, column), elements that hold a label's box.
        written_by: int64 `[B]`, index into `Labels` of the last label that wrote there.
        chosen: int64 `[K, 4]`, elements that some label chose; each is among `written`.
        chosen_by: int64 `[K]`, index into `Labels` of the last label that chose it.
        chosen_box: int64 `[K]`, index into `Labels` of the label whose box is written there.
        pairs: int64 `[P', 2]`, every (row of `chosen`, index into `Labels`) that chose it, overwritten ones too.
    """

    written: Tensor
    written_by: Tensor
    chosen: Tensor
    chosen_by: Tensor
    chosen_box: Tensor
    pairs: Tensor


def assign(labels: Labels, anchors: AnchorSet, level: int, size: tuple[int, int], guide: Optional[Tensor]) -> Assignment:
    """Chooses cells and anchors at one level.

    The label's cell holds its center. Its best base anchor decides the level; there, the guided anchor-free anchor replaces
    it where it fits the label's shape better than that *base* anchor does.

    Args:
        labels: of the batch.
        anchors: of all levels.
        level: index of the level, coarsest first.
        size: (rows, columns) of the level's map.
        guide: `[N, A * 2, rows, columns]` log sides over the base anchors, or None without guiding.
    """
    stride, per_level, first = anchors.strides[level], anchors.base_per_level, anchors.first(level)
    mine = torch.nonzero(anchors.level_of(labels.anchor) == level)[:, 0]
    boxes, image = labels.boxes[mine], labels.image[mine]
    row, column = _center_cells(boxes, stride, size)
    own = labels.anchor[mine] - first
    chosen = own
    writes = [(own, mine)]
    if guide is not None:
        free = torch.full_like(own, per_level)
        sides = ANCHOR_FREE_SIDE * stride * guide.detach()[image, 2 * per_level :, row, column].float().exp()
        fits = shape_iou(boxes[:, 2:], sides) > labels.anchor_iou[mine]
        chosen = torch.where(fits, free, own)
        writes.append((free, mine))

    count = per_level + (guide is not None)

    def key(anchor: Tensor) -> Tensor:
        return ((image * count + anchor) * size[0] + row) * size[1] + column

    written, written_by, _ = _last(torch.cat([key(anchor) for anchor, _ in writes]), torch.cat([by for _, by in writes]))
    keys, chosen_by, inverse = _last(key(chosen), mine)
    chosen_box = written_by[torch.searchsorted(written, keys)]

    def elements(flat: Tensor) -> Tensor:
        cells = size[0] * size[1]
        anchor_of = flat // cells
        return torch.stack([anchor_of // count, anchor_of % count, flat // size[1] % size[0], flat % size[1]], dim=1)

    pairs = torch.stack([inverse, mine], dim=1)
    return Assignment(elements(written), written_by, elements(keys), chosen_by, chosen_box, pairs)


def _center_cells(boxes: Tensor, stride: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns row and column int64 `[P]` of the cells that hold the centers of cxcywh boxes `[P, 4]`, kept inside the map."""
    column = (boxes[:, 0] / stride).floor().long().clamp(0, size[1] - 1)
    row = (boxes[:, 1] / stride).floor().long().clamp(0, size[0] - 1)
    return row, column


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


def _last(keys: Tensor, writers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the distinct keys, ascending, the largest (last) writer of each, and the index of each given key among them."""
    distinct, inverse = torch.unique(keys, return_inverse=True)
    last = torch.zeros_like(distinct).scatter_reduce(0, inverse, writers, "amax", include_self=False)
    return distinct, last, inverse


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
