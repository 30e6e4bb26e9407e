"""Computes RetinaNet's loss: focal loss of classes, smooth L1 of boxes (arXiv 1708.02002, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from runtime.spec import Anchors
from train.losses.retinanet_targets import IGNORED, anchor_boxes, assign_anchors, encode
from train.losses.yolo_targets import unpad

COMPONENTS = ("classes", "boxes")
_ALPHA = 0.25  # share of an object's own class; the others get 1 - alpha
_BETA = 1 / 9  # where smooth L1 turns from square to straight, as its authors' code has it


def retina_loss(maps: Sequence[Tensor], labels: Tensor, anchors: Anchors, strides: Sequence[int]) -> dict[str, Tensor]:
    """Computes the loss components, each summed over levels and divided by the batch's positive anchors (or 1).

    Args:
        maps: per level float32 `[N, A * (4 + C), H, W]`, channels anchor-major (tx, ty, tw, th, class logits).
        labels: `[N, M, 5 or 6]` (class, cx, cy, w, h in input pixels[, mixing weight]); all-zero rows are padding. The
            mixing weight enters the class loss alone.
        anchors: (width, height) in pixels, per level.
        strides: of the levels in pixels.

    Returns:
        Scalars `classes`, `boxes` and `total`.
    """
    image, rows = unpad(labels)
    grids = [
        anchor_boxes(sides, stride, (raw.shape[2], raw.shape[3]), raw.device)
        for raw, sides, stride in zip(maps, anchors, strides)
    ]
    everywhere = torch.cat(grids)
    matched_labels = []
    for index in range(len(labels)):  # image by image: every anchor against every label of the batch would fill the memory
        chosen = assign_anchors(everywhere, rows[image == index, 1:5])
        matched_labels.append(torch.where(chosen >= 0, chosen + (image < index).sum(), chosen))
    levels = torch.split(torch.stack(matched_labels), [len(grid) for grid in grids], dim=1)
    parts = [_level_loss(*level, rows) for level in zip(maps, grids, levels)]
    positives = torch.stack([(level >= 0).sum() for level in levels]).sum()
    classes, boxes = (torch.stack(values).sum() / positives.clamp(min=1) for values in zip(*parts))
    return {"classes": classes, "boxes": boxes, "total": classes + boxes}


def _level_loss(raw: Tensor, grid: Tensor, matched_labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the class and box losses of one level.

    Args:
        raw: the map `[N, A * (4 + C), H, W]`.
        grid: its anchors `[A * H * W, 4]`.
        matched_labels: int64 `[N, A * H * W]`, index into `rows`, `BACKGROUND` or `IGNORED`.
        rows: labels `[P, 6]`.
    """
    cells = raw.shape[2] * raw.shape[3]
    count = len(grid) // cells
    logits = raw.reshape(len(raw), count, -1, cells)  # [N, A, 4 + C, H * W]
    matched_labels = matched_labels.reshape(len(raw), count, cells)
    positive = torch.nonzero(matched_labels >= 0, as_tuple=True)
    mine, (image, anchor, cell) = rows[matched_labels[positive]], positive
    weights = (matched_labels != IGNORED).float().index_put(positive, mine[:, 5])
    chosen = logits[image, anchor, :, cell]  # [K, 4 + C]
    true = chosen[:, 4:].gather(1, mine[:, :1].long())[:, 0]
    # Everything is background first, which is right for all but the one class of a positive anchor.
    background = (weights[:, :, None] * _background(logits[:, :, 4:])).sum()
    classes = background + (mine[:, 5] * (_object(true) - _background(true))).sum()
    target = encode(mine[:, 1:5], grid[anchor * cells + cell])
    return classes, functional.smooth_l1_loss(chosen[:, :4], target, reduction="sum", beta=_BETA)


def _object(logits: Tensor) -> Tensor:
    """Focal loss where the class is there: -alpha (1 - p)^2 log p."""
    return _ALPHA * torch.sigmoid(-logits) ** 2 * functional.softplus(-logits)


def _background(logits: Tensor) -> Tensor:
    """Focal loss where it is not: -(1 - alpha) p^2 log(1 - p)."""
    return (1 - _ALPHA) * torch.sigmoid(logits) ** 2 * functional.softplus(logits)
