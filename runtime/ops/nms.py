"""Per-class non-maximum suppression, exact and bounded in time."""

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
    """Indices of the boxes that survive, best first: a box goes if a better one of its class overlaps it beyond the threshold.

    Equal scores keep their order. It works through the boxes in blocks of descending score: a block is held against
    what is already kept, then against itself, and it ends as soon as `max_detections` are kept. So the cost grows with
    `max_detections` x N, not with N x N.

    Args:
        boxes: float32 `[N, 4]` xyxy, finite.
        scores: float32 `[N]`.
        class_ids: int64 `[N]`.
        iou_threshold: in (0, 1].
        max_detections: at most this many are returned, all classes together.
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
    """bool `[len(better), len(worse)]`: same class and IoU above the threshold."""
    overlap = box_ops.iou(boxes[better], boxes[worse]) > threshold
    result: NDArray[np.bool_] = overlap & (class_ids[better][:, None] == class_ids[worse][None, :])
    return result


def _greedy(suppresses: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions that survive among boxes ordered best first, given who suppresses whom `[N, N]`."""
    alive = np.ones(len(suppresses), np.bool_)
    # Only rows that suppress someone after themselves need a look.
    for i in np.flatnonzero(np.triu(suppresses, 1).any(axis=1)):
        if alive[i]:
            alive[i + 1 :] &= ~suppresses[i, i + 1 :]
    return np.flatnonzero(alive)
