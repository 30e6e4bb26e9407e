"""Computes RetinaNet's loss: focal loss of classes, smooth L1 of boxes (arXiv 1708.02002, sections 3 and 4).

No shape in here depends on a value on the device, so a step never waits for it: `RetinaMatcher` assigns the anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from runtime.spec import Anchors
from train.losses.packing import PackedTargets, Unpacker, pack
from train.losses.retinanet_targets import LevelMatches, anchor_boxes, assign_anchors, level_matches
from train.losses.yolo_targets import unpad

COMPONENTS = ("classes", "boxes")
_ALPHA = 0.25  # share of an object's own class; the others get 1 - alpha
_BETA = 1 / 9  # where smooth L1 turns from square to straight, as its authors' code has it


@dataclass(frozen=True)
class RetinaMatcher:
    """Assigns anchors to the labels of a batch; see `train.losses.packing.Matcher`.

    Attributes:
        anchors: (width, height) in pixels, per level.
        strides: of the levels in pixels.
    """

    anchors: Anchors
    strides: tuple[int, ...]

    def __call__(self, labels: Tensor, size: tuple[int, int]) -> PackedTargets:
        """See `train.losses.packing.Matcher`."""
        return self.match(labels, [(-(-size[0] // stride), -(-size[1] // stride)) for stride in self.strides])

    def match(self, labels: Tensor, maps: Sequence[tuple[int, int]]) -> PackedTargets:
        """Makes the targets for maps of these (rows, columns)."""
        image, rows = unpad(labels)
        grids = [anchor_boxes(*level, labels.device) for level in zip(self.anchors, self.strides, maps)]
        everywhere = torch.cat(grids)
        chosen = []
        for index in range(len(labels)):  # image by image: all anchors against all labels of the batch would fill the memory
            matched = assign_anchors(everywhere, rows[image == index, 1:5])
            chosen.append(torch.where(matched >= 0, matched + (image < index).sum(), matched))
        levels = torch.split(torch.stack(chosen), [len(grid) for grid in grids], dim=1)
        return pack([level_matches(*level, rows) for level in zip(levels, grids, map(len, self.anchors))])


def retina_loss(
    maps: Sequence[Tensor],
    targets: Tensor | PackedTargets,
    anchors: Anchors,
    strides: Sequence[int],
    normalizer: Tensor | None = None,
) -> dict[str, Tensor]:
    """Computes the loss components, each summed over levels and divided by the batch's positive anchors (or 1).

    Args:
        maps: per level float32 `[N, A * (4 + C), H, W]`, channels anchor-major (tx, ty, tw, th, class logits).
        targets: from `RetinaMatcher`, on the device of the maps; or labels `[N, M, 5 or 6]` (class, cx, cy, w, h in input
            pixels[, mixing weight]; all-zero rows are padding), which are matched here first. The mixing weight enters the
            class loss alone.
        anchors: (width, height) in pixels, per level.
        strides: of the levels in pixels.
        normalizer: what to divide by instead of the positive anchors, where these images are a part of a batch.

    Returns:
        Scalars `classes`, `boxes` and `total`.
    """
    if isinstance(targets, Tensor):
        matcher = RetinaMatcher(anchors, tuple(strides))
        sizes = [(raw.shape[2], raw.shape[3]) for raw in maps]
        targets = matcher.match(targets.cpu(), sizes).to(maps[0].device)
    unpacker = Unpacker(targets)
    levels = [unpacker.take(LevelMatches) for _ in maps]
    parts = [_level_loss(raw, level, len(sides)) for raw, level, sides in zip(maps, levels, anchors)]
    divisor = max(_positives(levels), 1) if normalizer is None else normalizer
    classes, boxes = (torch.stack(values).sum() / divisor for values in zip(*parts))
    return {"classes": classes, "boxes": boxes, "total": classes + boxes}


def count_positives(targets: PackedTargets, levels: int) -> int:
    """Counts the positive anchors in the targets of a batch with so many levels."""
    unpacker = Unpacker(targets)
    return _positives([unpacker.take(LevelMatches) for _ in range(levels)])


def _positives(levels: Sequence[LevelMatches]) -> int:
    return sum(len(level.place) for level in levels)


def _level_loss(raw: Tensor, level: LevelMatches, count: int) -> tuple[Tensor, Tensor]:
    """Sums the class and box losses of one level.

    Args:
        raw: the map `[N, A * (4 + C), H, W]`.
        level: its targets.
        count: A.
    """
    cells = raw.shape[2] * raw.shape[3]
    logits = raw.reshape(len(raw), count, -1, cells)  # [N, A, 4 + C, H * W]
    image, anchor, cell = level.place.unbind(dim=1)
    weights = logits.new_ones(len(raw) * count * cells)
    weights.index_fill_(0, level.ignored, 0).index_copy_(
        0, (image * count + anchor) * cells + cell, level.weight.to(weights.dtype)
    )
    chosen = logits[image, anchor, :, cell]  # [K, 4 + C]
    true = chosen[:, 4:].gather(1, level.class_id[:, None])[:, 0]
    # Everything is background first, which is right for all but the one class of a positive anchor.
    background = (weights.view(len(raw), count, 1, cells) * _background(logits[:, :, 4:])).sum()
    classes = background + (level.weight * (_object(true) - _background(true))).sum()
    return classes, functional.smooth_l1_loss(chosen[:, :4], level.target.to(chosen.dtype), reduction="sum", beta=_BETA)


def _object(logits: Tensor) -> Tensor:
    """Focal loss where the class is there: -alpha (1 - p)^2 log p."""
    return _ALPHA * torch.sigmoid(-logits) ** 2 * functional.softplus(-logits)


def _background(logits: Tensor) -> Tensor:
    """Focal loss where it is not: -(1 - alpha) p^2 log(1 - p)."""
    return (1 - _ALPHA) * torch.sigmoid(logits) ** 2 * functional.softplus(logits)
