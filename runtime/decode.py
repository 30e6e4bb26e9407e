"""From the network's raw maps to candidate boxes. The only numpy decode; the contract it reads is in docs/contract.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import boxes as box_ops
from runtime.errors import ModelError
from runtime.spec import ModelSpec

# exp(30) times any anchor covers every picture many times over, and its square still fits float32.
_MAX_LOG_SIDE = np.float32(30)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Boxes of one image before NMS, in the order level, anchor, row, column.

    Attributes:
        boxes: float32 `[K, 4]` xyxy in input pixels, finite, not clipped.
        scores: float32 `[K]`, objectness times the best class's probability.
        class_ids: int64 `[K]`, that class.
        levels: int64 `[K]`, index of the output level that made each.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    levels: NDArray[np.int64]


def decode(maps: Sequence[NDArray[np.float32]], spec: ModelSpec, score_threshold: float) -> Candidates:
    """Decode one image's raw maps, one class per box, keeping scores of at least `score_threshold`.

    A cell (i, j) of a level predicts per anchor (aw, ah): x = (sigmoid(tx) + i) * stride, y = (sigmoid(ty) + j) * stride,
    w = aw * exp(tw), h = ah * exp(th), score = sigmoid(to) * sigmoid(best class logit).

    Args:
        maps: per level, float32 `[A * (5 + C), H, W]` logits, channels anchor-major (tx, ty, tw, th, to, classes).

    Raises:
        ModelError: a logit that matters is not a number.
    """
    levels = [_decode_level(raw, spec, level, score_threshold) for level, raw in enumerate(maps)]
    boxes, scores, class_ids = (np.concatenate(parts) for parts in zip(*levels))
    return Candidates(boxes, scores, class_ids, np.repeat(np.arange(len(levels)), [len(level[1]) for level in levels]))


def _decode_level(
    raw: NDArray[np.float32], spec: ModelSpec, level: int, score_threshold: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    anchors = np.asarray(spec.anchors[level], np.float32)
    width, stride = raw.shape[2], spec.strides[level]
    per_anchor = raw.reshape(len(anchors), 5 + spec.num_classes, -1)
    objectness = per_anchor[:, 4]
    if np.isnan(objectness).any():
        raise ModelError(f"output {spec.output_names[level]} holds values that are not numbers; the model is damaged")

    # The product of two probabilities is below the threshold where either is, so objectness alone rules out most cells
    # before anything else is read.
    anchor_ids, cells = np.nonzero(objectness >= _logit(score_threshold))
    starts = np.searchsorted(anchor_ids, np.arange(len(anchors) + 1))
    columns = [np.take(plane, cells[begin:end], axis=1) for plane, begin, end in zip(per_anchor, starts[:-1], starts[1:])]
    logits = np.concatenate(columns, axis=1)  # [5 + C, K]
    best = logits[5:].max(axis=0)
    with np.errstate(over="ignore"):  # exp(-x) may overflow to infinity, which makes the sigmoid 0
        scores = _sigmoid(logits[4]) * _sigmoid(best)
        keep = np.flatnonzero(scores >= score_threshold)
        cells, anchor_ids, logits = cells[keep], anchor_ids[keep], logits[:, keep]
        if np.isnan(best).any() or np.isnan(logits[:4]).any():
            raise ModelError(f"output {spec.output_names[level]} holds values that are not numbers; the model is damaged")
        centres = (_sigmoid(logits[:2]) + np.stack([cells % width, cells // width]).astype(np.float32)) * np.float32(stride)
        sides = anchors[anchor_ids].T * np.exp(np.minimum(logits[2:4], _MAX_LOG_SIDE))
    boxes = box_ops.cxcywh_to_xyxy(np.concatenate([centres, sides]).T)
    return boxes.astype(np.float32, copy=False), scores[keep], np.argmax(logits[5:].T, axis=1)


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.float32(1) / (np.float32(1) + np.exp(-x))
    return result


def _logit(probability: float) -> Any:
    """The logit of a probability, rounded down by more than float32 errs, so that no score of exactly the threshold is lost."""
    if probability <= 0:
        return np.float32(-np.inf)
    reduced = probability * (1 - 1e-6)
    return np.float32(np.log(reduced / (1 - reduced)) - 1e-4)
