"""Compares a file with its reference at the operating point: what a user sees change, and what it does to F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.accuracy.box_changes import APPEARED, SHOWN_SCORE, VANISHED, Box, Record, by_image, match_detections, overlaps
from runtime.evaluation.bootstrap import Bounds, Indices, draw_weights, make_bounds
from runtime.evaluation.coco import Evaluation
from runtime.evaluation.matching import Matches
from runtime.spec import ModelSpec

Counts = NDArray[np.int64]

SHARES = ("vanished", "appeared", "reclassified")
F1 = "f1"


@dataclass(frozen=True)
class OperatingChange:
    """Change of the detections above a score threshold, with bounds; all values in percent or points.

    Attributes:
        threshold: the lowest score that counts.
        detections: number of detections of the reference.
        changes: by name: `vanished`, `appeared` and `reclassified` as the negative share of the reference's detections in
            percent, so that, as everywhere, negative is worse; `f1` as the change of F1 in points.
    """

    threshold: float
    detections: int
    changes: Mapping[str, Bounds]


def operating_threshold(spec: ModelSpec) -> float:
    """Returns the threshold that these weights are used at: the one they store, else the default of detection."""
    return SHOWN_SCORE if spec.operating_threshold is None else spec.operating_threshold


def compare_operating(
    reference: Evaluation, other: Evaluation, threshold: float, confidence: float, groups: Indices | None = None
) -> OperatingChange:
    """Compares the detections of two models at a threshold, with a paired bootstrap over the images.

    Args:
        reference: evaluation of the reference.
        other: evaluation of the model that is compared with it, on the same images.
        threshold: the lowest score that counts.
        confidence: of each bound, in (0.5, 1).
        groups: copies of an image among the images, see `draw_weights`.
    """
    ids = reference.matches.image_ids
    before, after = by_image(reference.results, threshold), by_image(other.results, threshold)
    counts = np.array([_count(before.get(i, []), after.get(i, [])) for i in ids], np.int64).reshape(len(ids), len(SHARES))
    total = np.array([len(before.get(i, [])) for i in ids], np.int64)
    scored = [_f1_counts(item.matches, threshold) for item in (reference, other)]
    weights = draw_weights(len(ids), groups)
    different = len(ids) if groups is None else int(groups.max()) + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = -100 * (weights @ counts) / (weights @ total)[:, None]
        f1 = [200 * (weights @ right) / (weights @ (found + objects)) for right, found, objects in scored]
    values = {**dict(zip(SHARES, shares.T)), F1: f1[1] - f1[0]}
    changes = {name: _bounds(item, different, confidence) for name, item in values.items()}
    return OperatingChange(threshold, int(total.sum()), changes)


def _bounds(values: NDArray[np.float64], images: int, confidence: float) -> Bounds:
    """Returns the bounds of a value; the first is the one measured, the others are those of resampled sets."""
    error = float(np.nanstd(values[1:])) if np.isfinite(values[1:]).any() else 0.0
    return make_bounds(float(values[0]), error, images, confidence)


def _count(before: Sequence[Record], after: Sequence[Record]) -> tuple[int, int, int]:
    """Counts the detections of one image that vanished, appeared, and came back as another class."""
    boxes = match_detections(before, after)
    vanished = [box for box in boxes if box.kind == VANISHED]
    appeared = [box for box in boxes if box.kind == APPEARED]
    changed = 0
    for box in vanished:
        twin = _best_overlap(box, appeared)
        if twin is not None:
            appeared.remove(twin)
            changed += 1
    return len(vanished) - changed, len(appeared), changed


def _best_overlap(box: Box, others: Sequence[Box]) -> Box | None:
    near = [other for other in others if overlaps(box.box, other.box)]
    return max(near, key=lambda other: other.score, default=None)


def _f1_counts(matches: Matches, threshold: float) -> tuple[Counts, Counts, Counts]:
    """Counts right detections, detections and objects of each image, over all classes, at IoU 0.5."""
    right, found, objects = (np.zeros(len(matches.image_ids), np.int64) for _ in range(3))
    for item in matches.by_area["all"]:
        chosen = (item.scores >= threshold) & ~item.ignored[0]
        right += np.bincount(item.image_index[chosen & item.matched[0]], minlength=len(right))
        found += np.bincount(item.image_index[chosen], minlength=len(right))
        objects += item.objects
    return right, found, objects
