"""Box conversions, clipping, area and IoU.

Boxes are floats in pixels: `xyxy` is (x1, y1, x2, y2), `cxcywh` is (center x, center y, width, height).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


def cxcywh_to_xyxy(boxes: Floats) -> Floats:
    """Converts `[..., 4]` cxcywh to xyxy, same dtype."""
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def xyxy_to_cxcywh(boxes: Floats) -> Floats:
    """Converts `[..., 4]` xyxy to cxcywh, same dtype."""
    return np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=-1)


def xyxy_to_xywh(boxes: Floats) -> Floats:
    """Converts `[..., 4]` xyxy to COCO's (left, top, width, height), same dtype."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def clip(boxes: Floats, width: float, height: float) -> Floats:
    """Clips `[..., 4]` xyxy to `[0, width] x [0, height]`."""
    limit = np.array([width, height, width, height], boxes.dtype)
    clipped: Floats = np.minimum(np.maximum(boxes, np.zeros(4, boxes.dtype)), limit)
    return clipped


def iou(first: Floats, second: Floats) -> Floats:
    """Computes the intersection over union of every pair of boxes.

    Args:
        first: `[N, 4]` xyxy.
        second: `[M, 4]` xyxy.

    Returns:
        `[N, M]` in [0, 1]; 0 where both areas are 0.
    """
    x1 = np.maximum(first[:, None, 0], second[None, :, 0])
    y1 = np.maximum(first[:, None, 1], second[None, :, 1])
    x2 = np.minimum(first[:, None, 2], second[None, :, 2])
    y2 = np.minimum(first[:, None, 3], second[None, :, 3])
    intersection = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    union = area(first)[:, None] + area(second)[None, :] - intersection
    ratio: Floats = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return ratio


def area(boxes: Floats) -> Floats:
    """Computes the area of `[..., 4]` xyxy: `[...]`, never negative."""
    result: Floats = np.maximum(boxes[..., 2] - boxes[..., 0], 0) * np.maximum(boxes[..., 3] - boxes[..., 1], 0)
    return result
