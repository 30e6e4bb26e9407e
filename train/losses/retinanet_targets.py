"""Assigns labels to RetinaNet's anchors and encodes boxes (arXiv 1708.02002, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.losses.yolo_targets import box_iou

POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
BACKGROUND, IGNORED = -1, -2
"""Marks of anchors without a label: trained as background, or left out."""


def anchor_boxes(sides: Sequence[tuple[float, float]], stride: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Returns the anchors of a level, float32 `[A * H * W, 4]` cxcywh in input pixels: anchor-major, then row, then column.

    Args:
        sides: (width, height) in pixels of the A anchors, centered on every cell.
        stride: of the level in pixels.
        size: (H, W) of the map.
        device: of the result.
    """
    height, width = size
    rows = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) * stride
    columns = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) * stride
    centers = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # [H, W, (x, y)]
    shapes = torch.tensor(sides, dtype=torch.float32, device=device).reshape(-1, 1, 1, 2).expand(-1, height, width, 2)
    return torch.cat([centers.expand_as(shapes), shapes], dim=-1).reshape(-1, 4)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Encodes cxcywh `boxes` `[K, 4]` at `anchors` `[K, 4]` as (tx, ty, tw, th) `[K, 4]`."""
    return torch.cat([(boxes[:, :2] - anchors[:, :2]) / anchors[:, 2:], torch.log(boxes[:, 2:] / anchors[:, 2:])], dim=1)


def decode_boxes(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Inverts `encode`: (tx, ty, tw, th) `[..., K, 4]` at `anchors` `[K, 4]` to cxcywh `[..., K, 4]`."""
    return torch.cat([anchors[:, :2] + offsets[..., :2] * anchors[:, 2:], anchors[:, 2:] * torch.exp(offsets[..., 2:])], dim=-1)


@torch.no_grad()
def assign_anchors(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Assigns a label to each anchor of one image.

    An anchor takes the label that it overlaps best where their IoU is at least 0.5, is background below 0.4 and is ignored
    in between. Besides, every label gets the anchor that overlaps it best (all of them on a tie), however small the overlap;
    if several labels want the same one, the best overlap decides, and the first label on a tie.

    Args:
        anchors: `[K, 4]` cxcywh.
        boxes: the image's labels `[P, 4]` cxcywh; one without area gets no anchor.

    Returns:
        int64 `[K]`: an index into `boxes`, `BACKGROUND` or `IGNORED`.
    """
    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    ious = box_iou(anchors[:, None], boxes)  # [K, P]
    iou, label = ious.max(dim=1)
    label = label.masked_fill(iou < POSITIVE_IOU, IGNORED).masked_fill(iou < NEGATIVE_IOU, BACKGROUND)
    most = ious.amax(dim=0)
    wanted, wanted_by = torch.where(ious == most, ious, 0.0).max(dim=1)
    return torch.where(wanted > 0, wanted_by, label)


@dataclass(frozen=True)
class LevelMatches:
    """Targets of one level.

    Attributes:
        place: int64 `[K, 3]` (image, anchor, cell) of the positive anchors.
        class_id: int64 `[K]`, of their labels.
        weight: float32 `[K]`, the mixing weights of their labels.
        target: float32 `[K, 4]`, what their boxes should be, see `encode`.
        ignored: int64 `[I]`, the anchors that are left out, numbered through the batch.
    """

    place: Tensor
    class_id: Tensor
    weight: Tensor
    target: Tensor
    ignored: Tensor


def level_matches(matched_labels: Tensor, grid: Tensor, count: int, rows: Tensor) -> LevelMatches:
    """Makes the targets of one level.

    Args:
        matched_labels: int64 `[N, A * H * W]`, index into `rows`, `BACKGROUND` or `IGNORED`.
        grid: the level's anchors `[A * H * W, 4]`.
        count: A.
        rows: labels `[P, 6]`.
    """
    image, place = torch.nonzero(matched_labels >= 0, as_tuple=True)
    mine, cells = rows[matched_labels[image, place]], len(grid) // count
    return LevelMatches(
        place=torch.stack([image, place // cells, place % cells], dim=1),
        class_id=mine[:, 0].long(),
        weight=mine[:, 5],
        target=encode(mine[:, 1:5], grid[place]),
        ignored=torch.nonzero(matched_labels.flatten() == IGNORED)[:, 0],
    )
