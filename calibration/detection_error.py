"""Measures how far the detections of one model are from those of another, on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.ops import boxes as box_ops
from runtime.ops.decode import Candidates, decode
from runtime.spec import ModelSpec

Outputs = Sequence[NDArray[np.float32]]
"""Raw maps of one image or of a batch that repeats it, each `[N, A * (5 + C), H, W]`."""


class DetectionError:
    """Compares raw maps with those of a reference model, candidate by candidate.

    The error of a candidate is the change of its score, plus the larger score times 1 - IoU of the two boxes (1 if the class
    changed). It is bounded, so a few activations that are far out of range count no more than the candidates they spoil.
    Candidates below the spec's score threshold in both models do not count. The sum over all candidates is divided by the
    sum of the reference's scores from that threshold on, the same for every model that is compared.

    Args:
        spec: of both models; with raw maps.
        reference: the reference's outputs of each image.
    """

    def __init__(self, spec: ModelSpec, reference: Iterable[Outputs]) -> None:
        self._spec = spec
        self._reference = [_all_candidates(outputs, spec) for outputs in reference]
        scores = (item.scores[item.scores >= spec.score_threshold] for item in self._reference)
        self._total = max(sum(float(each.sum(dtype=np.float64)) for each in scores), 1e-12)

    def __call__(self, other: Iterable[Outputs], limit: float = float("inf")) -> float:
        """Returns the error of the outputs of the same images; infinite if an output is not finite.

        Args:
            other: the outputs of each image in turn; no more are taken once the error reaches the limit.
            limit: an error from which on its value does not matter; what is returned then is at least this.
        """
        changed = 0.0
        for first, outputs in zip(self._reference, other):
            if not all(np.isfinite(output).all() for output in outputs):
                return float("inf")
            second = _all_candidates(outputs, self._spec)
            larger = np.maximum(first.scores, second.scores)
            counted = larger >= self._spec.score_threshold
            overlap = np.where(first.class_ids == second.class_ids, _iou(first.boxes, second.boxes), 0.0)
            error = np.abs(first.scores - second.scores) + larger * (1 - overlap)
            changed += float(error[counted].sum(dtype=np.float64)) / self._total
            if changed >= limit:
                break
        return changed


def _all_candidates(outputs: Outputs, spec: ModelSpec) -> Candidates:
    return decode([output[0] for output in outputs], spec, 0.0)


def _iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Computes the intersection over union of the boxes `[K, 4]` of each pair, `[K]`."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    corners = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    shared = np.maximum(corners, 0).prod(axis=1)
    union = box_ops.area(first) + box_ops.area(second) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))
