"""Decodes the network's outputs to candidate boxes.

The outputs are specified in docs/contract.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ModelError
from runtime.ops import boxes as box_ops
from runtime.spec import CANDIDATES_NAME, ModelSpec

# exp(30) times any anchor covers every image many times over, and its square still fits float32.
_MAX_LOG_SIDE = np.float32(30)
# A shift by a million anchors lies outside of every image, and is finite.
_MAX_SHIFT = np.float32(1e6)
# The same bounds for boxes in pixels.
_FARTHEST, _LARGEST = np.float32(1e9), np.float32(1e16)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Boxes of one image before NMS, in the order level, anchor, row, column.

    Attributes:
        boxes: float32 `[K, 4]` xyxy in input pixels, finite, not clipped.
        scores: float32 `[K]`, the best class's probability, times the objectness where the head has one.
        class_ids: int64 `[K]`, that class.
        levels: int64 `[K]`, index of the output level that each comes from.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    levels: NDArray[np.int64]

    def __getitem__(self, index: Any) -> Candidates:
        """Selects candidates by a boolean mask or an integer array."""
        return Candidates(self.boxes[index], self.scores[index], self.class_ids[index], self.levels[index])


def decode(outputs: Sequence[NDArray[np.float32]], spec: ModelSpec, score_threshold: float) -> Candidates:
    """Decodes the outputs of one image to boxes of one class each.

    A model with `top_k` decodes by itself and returns its K best boxes. Otherwise the outputs are raw maps. Column i, row j
    of a level predicts per anchor (aw, ah) a box of w = aw * exp(tw), h = ah * exp(th), and by head:

    - yolo: x = (sigmoid(tx) + i) * stride, y = (sigmoid(ty) + j) * stride, score = sigmoid(to) * sigmoid(best class logit);
    - retinanet: x = (i + 0.5) * stride + tx * aw, y = (j + 0.5) * stride + ty * ah, score = sigmoid(best class logit).

    Args:
        outputs: float32, in the order of `spec.outputs`. Raw maps are `[A * (5 + C), H, W]` logits, channels anchor-major
            (tx, ty, tw, th, to, classes); there is no `to` in RetinaNet's `[A * (4 + C), H, W]`.
        spec: of the model.
        score_threshold: boxes of lower scores are left out; in [0, 1].

    Raises:
        ModelError: a logit that is needed, or a candidate, is NaN.
    """
    if spec.top_k:
        return _unpack(outputs[0], spec, score_threshold)
    levels = [_decode_level(raw, spec, level, score_threshold) for level, raw in enumerate(outputs)]
    boxes, scores, class_ids = (np.concatenate(parts) for parts in zip(*levels))
    return Candidates(boxes, scores, class_ids, np.repeat(np.arange(len(levels)), [len(level[1]) for level in levels]))


def _unpack(rows: NDArray[np.float32], spec: ModelSpec, score_threshold: float) -> Candidates:
    """Unpacks the rows `[K, 7]` of a model that decodes by itself; see `CANDIDATE_COLUMNS`."""
    _refuse_nan(rows, CANDIDATES_NAME)
    ends = np.cumsum(spec.boxes_per_level())
    indices = rows[:, 5:]
    if (indices < 0).any() or (indices >= (spec.num_classes, ends[-1])).any() or (indices != np.floor(indices)).any():
        raise ModelError(
            f"output {CANDIDATES_NAME} holds a class or an anchor index that the model does not have; the file is damaged"
        )
    if (rows[:, 2:5] < 0).any() or (rows[:, 4] > 1).any():
        raise ModelError(f"output {CANDIDATES_NAME} holds a negative side or a score that is not in 0-1; the file is damaged")
    anchor_index = rows[:, 6].astype(np.int64)
    order = np.argsort(anchor_index)
    order = order[rows[order, 4] >= score_threshold]
    chosen = rows[order]
    # The same bounds as for raw maps.
    centers, sides = np.clip(chosen[:, :2], -_FARTHEST, _FARTHEST), np.minimum(chosen[:, 2:4], _LARGEST)
    boxes = box_ops.cxcywh_to_xyxy(np.concatenate([centers, sides], axis=1))
    levels = np.searchsorted(ends, anchor_index[order], side="right")
    return Candidates(boxes, chosen[:, 4], chosen[:, 5].astype(np.int64), levels)


def _decode_level(
    raw: NDArray[np.float32], spec: ModelSpec, level: int, score_threshold: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    anchors = np.asarray(spec.anchors[level], np.float32)
    width, stride, is_yolo = raw.shape[2], np.float32(spec.strides[level]), spec.head == "yolo"
    per_anchor = raw.reshape(len(anchors), spec.class_channel + spec.num_classes, -1)
    # A product of probabilities is below the threshold where either factor is, so one plane rules out most cells first.
    deciding = per_anchor[:, 4] if is_yolo else per_anchor[:, 4:].max(axis=1)
    _refuse_nan(deciding, spec.map_names[level])

    anchor_ids, cells = np.nonzero(deciding >= _logit(score_threshold))
    starts = np.searchsorted(anchor_ids, np.arange(len(anchors) + 1))
    columns = [np.take(plane, cells[begin:end], axis=1) for plane, begin, end in zip(per_anchor, starts[:-1], starts[1:])]
    logits = np.concatenate(columns, axis=1)  # [5 + C, K]; 4 + C without objectness
    classes = logits[spec.class_channel :]
    best = classes.max(axis=0)
    with np.errstate(over="ignore"):  # exp(-x) may overflow to infinity, which makes the sigmoid 0
        scores = _sigmoid(logits[4]) * _sigmoid(best) if is_yolo else _sigmoid(best)
        keep = np.flatnonzero(scores >= score_threshold)
        cells, classes, box, sides = cells[keep], classes[:, keep], logits[:4, keep], anchors[anchor_ids[keep]].T
        _refuse_nan(best, spec.map_names[level])
        _refuse_nan(box, spec.map_names[level])
        corners = np.stack([cells % width, cells // width]).astype(np.float32)
        if is_yolo:
            centers = (_sigmoid(box[:2]) + corners) * stride
        else:
            centers = (corners + np.float32(0.5)) * stride + np.clip(box[:2], -_MAX_SHIFT, _MAX_SHIFT) * sides
        sides = sides * np.exp(np.minimum(box[2:], _MAX_LOG_SIDE))
    boxes = box_ops.cxcywh_to_xyxy(np.concatenate([centers, sides]).T)
    return boxes.astype(np.float32, copy=False), scores[keep], np.argmax(classes.T, axis=1)


def _refuse_nan(values: NDArray[np.float32], output: str) -> None:
    if np.isnan(values).any():
        raise ModelError(f"output {output} holds NaN; the model is damaged")


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.float32(1) / (np.float32(1) + np.exp(-x))
    return result


def _logit(probability: float) -> Any:
    """Returns a logit slightly below that of `probability`, so that rounding drops no score that equals the threshold."""
    if probability <= 0:
        return np.float32(-np.inf)
    reduced = probability * (1 - 1e-6)
    return np.float32(np.log(reduced / (1 - reduced)) - 1e-4)
