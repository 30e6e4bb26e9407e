"""Greedy non-maximum suppression per class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.ops import boxes as box_ops

_BLOCK = 256


def nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    class_ids: NDArray[np.int64],
    iou_threshold: float,
    max_detections: int,
) -> NDArray[np.int64]:
    """Removes boxes that overlap a better box of their class beyond the threshold.

    Equal scores keep their order. Boxes are compared in blocks of descending score, first with the boxes kept so far, then
    with each other, until `max_detections` are kept. So the cost grows with `max_detections` x N, not with N x N.

    Args:
        boxes: float32 `[N, 4]` xyxy, finite.
        scores: float32 `[N]`.
        class_ids: int64 `[N]`.
        iou_threshold: boxes of a higher IoU overlap; in (0, 1].
        max_detections: of all classes together.

    Returns:
        int64 indices of the boxes that remain, best first.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.empty(0, np.int64)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        if len(kept):
            block = block[~_suppresses(boxes, class_ids, kept, block, iou_threshold).any(axis=0)]
        kept = np.concatenate([kept, block[_greedy(_suppresses(boxes, class_ids, block, block, iou_threshold))]])
        if len(kept) >= max_detections:
            break
    return kept[:max_detections]


def _suppresses(
    boxes: NDArray[np.float32],
    class_ids: NDArray[np.int64],
    better: NDArray[np.int64],
    worse: NDArray[np.int64],
    threshold: float,
) -> NDArray[np.bool_]:
    """Compares boxes pairwise: bool `[len(better), len(worse)]`, same class and IoU above the threshold."""
    overlap = box_ops.iou(boxes[better], boxes[worse]) > threshold
    result: NDArray[np.bool_] = overlap & (class_ids[better][:, None] == class_ids[worse][None, :])
    return result


def _greedy(suppresses: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the positions that remain of boxes ordered best first, given which suppresses which `[N, N]`."""
    alive = np.ones(len(suppresses), np.bool_)
    # Other rows suppress nothing behind themselves.
    for i in np.flatnonzero(np.triu(suppresses, 1).any(axis=1)):
        if alive[i]:
            alive[i + 1 :] &= ~suppresses[i, i + 1 :]
    return np.flatnonzero(alive)
