"""Measures how sure a difference of AP is: a paired bootstrap over images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Optional

import numpy as np
from numpy.typing import NDArray

from runtime.evaluation.matching import ClassMatches, Matches

Floats = NDArray[np.float64]
Counts = NDArray[np.int32]
Indices = NDArray[np.intp]

RESAMPLES = 1000
_THRESHOLDS: Floats = np.linspace(0.0, 1.0, 101)  # of recall, as in COCO's evaluation
_ELEMENTS = 4_000_000  # of the largest array of a block of resamples
_SPACING = float(np.spacing(1))  # pycocotools adds it to every denominator


def average_precision(matches: Matches, weights: NDArray[np.int32], area: str = "all") -> Floats:
    """Computes AP over IoU 0.50:0.95 of each class, with every image counted as often as its weight says.

    With a weight of 1 everywhere these are the values of `COCOeval.accumulate`.

    Args:
        matches: detections and objects of all images.
        weights: int32 `[B, I]`, how often each of B resampled sets holds each image.
        area: one of `AREAS`.

    Returns:
        float64 `[B, K]` in [0, 1]; NaN where a set has no object of the class.
    """
    found = [_class_ap(item, weights) for item in matches.by_area[area]]
    return np.stack(found, axis=1)


def mean_ap(per_class: Floats) -> Floats:
    """Averages AP `[B, K]` over the classes that have objects; NaN where none has."""
    present = ~np.isnan(per_class)
    total = np.where(present, per_class, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / present.sum(axis=1))


def _class_ap(item: ClassMatches, weights: NDArray[np.int32]) -> Floats:
    block = max(1, _ELEMENTS // max(1, len(item.scores)))
    return np.concatenate([_block_ap(item, weights[start : start + block]) for start in range(0, len(weights), block)])


def _block_ap(item: ClassMatches, weights: NDArray[np.int32]) -> Floats:
    used = np.flatnonzero(item.objects)
    objects = weights[:, used] @ item.objects[used]  # [B]
    right = item.matched & ~item.ignored
    anchors = np.flatnonzero(right.any(axis=0))  # detections that are right at any IoU threshold
    if not anchors.size:
        return np.where(objects > 0, 0.0, np.nan)
    drawn = np.ascontiguousarray(weights.T)[item.image_index]  # [D, B]
    seen = np.cumsum(np.add.reduceat(drawn[: anchors[-1] + 1], np.append(0, anchors[:-1] + 1), axis=0), axis=0)
    number, at = np.arange(objects.max() + 1)[:, None], np.arange(len(weights))
    reached = np.searchsorted(_THRESHOLDS, number / np.maximum(objects, 1), side="right").astype(np.int8)
    total = np.zeros(len(weights))
    for row, ignored in zip(right, item.ignored):
        positions = np.flatnonzero(row)
        counted = seen[np.searchsorted(anchors, positions)] - _running(drawn, np.flatnonzero(ignored), positions)
        found = np.cumsum(drawn[positions], axis=0, dtype=np.int32)
        total += _interpolated(found, counted, reached[found, at])
    return np.where(objects > 0, total / len(right), np.nan)


def _running(drawn: NDArray[np.int32], which: NDArray[np.intp], positions: NDArray[np.intp]) -> NDArray[np.int32]:
    """Counts the detections `which` that lie before each of the positions, `[M, B]`."""
    start = np.zeros((1, drawn.shape[1]), np.int32)
    sums = np.concatenate([start, np.cumsum(drawn[which], axis=0, dtype=np.int32)]) if which.size else start
    return sums[np.searchsorted(which, positions)]


def _interpolated(right: NDArray[np.int32], counted: NDArray[np.int32], reached: NDArray[np.int8]) -> Floats:
    """Averages the interpolated precision over the recall thresholds.

    Precision is needed at right detections alone: between two of them it only falls, and recall stands still.

    Args:
        right: number of right detections up to and with each right one, `[M, B]`.
        counted: number of detections up to it that are not ignored, `[M, B]`.
        reached: number of recall thresholds that it reaches, `[M, B]`.

    Returns:
        float64 `[B]`.
    """
    precision = right / (counted + _SPACING)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    gained = np.diff(reached, axis=0, prepend=np.int8(0))
    return np.asarray(np.einsum("mb,mb->b", envelope, gained) / len(_THRESHOLDS))


@dataclass(frozen=True)
class Bounds:
    """A difference and how sure it is, in points of AP; negative is a loss.

    Attributes:
        estimate: on all images.
        standard_error: of the estimate.
        lower: the true difference is above it with this confidence.
        upper: the true difference is below it with this confidence.
        confidence: of each of the two bounds, in (0.5, 1).
    """

    estimate: float
    standard_error: float
    lower: float
    upper: float
    confidence: float


@dataclass(frozen=True)
class ApDelta:
    """ΔAP of a model against its reference, on all images and on resampled sets of them.

    Attributes:
        estimate: ΔAP in points, float64 `[1 + K]`: of all classes together, then of each class; NaN without objects.
        samples: the same on each resampled set, `[B, 1 + K]`.
        reference: AP of the reference in points, `[1 + K]`.
        class_names: of the K classes.
        presence: bool `[K, G]`, which images hold an object of the class; copies of an image are one.
        objects: number of objects of each class.
    """

    estimate: Floats
    samples: Floats
    reference: Floats
    class_names: tuple[str, ...]
    presence: NDArray[np.bool_]
    objects: tuple[int, ...]

    @property
    def images(self) -> int:
        """Number of different images."""
        return int(self.presence.shape[1])

    def images_with_objects(self, class_name: Optional[str] = None) -> int:
        """Returns the number of images with an object of the class; None for any class."""
        rows = self.presence if class_name is None else self.presence[[self.class_names.index(class_name)]]
        return int(rows.any(axis=0).sum())

    def bounds(self, confidence: float, class_name: Optional[str] = None) -> Bounds:
        """Returns ΔAP over all classes, or of one class, with its bounds.

        Args:
            confidence: of each bound, in (0.5, 1).
            class_name: None for all classes together.
        """
        column = 0 if class_name is None else 1 + self.class_names.index(class_name)
        estimate, samples = float(self.estimate[column]), self.samples[:, column]
        error = float(np.nanstd(samples)) if not np.isnan(samples).all() else 0.0
        return make_bounds(estimate, error, self.images, confidence)


def make_bounds(estimate: float, error: float, images: int, confidence: float) -> Bounds:
    """Returns the bounds of an estimate by Student's distribution.

    Args:
        estimate: on all images.
        error: its standard deviation over resampled sets, which is too small by sqrt(1 - 1 / images).
        images: number of images.
        confidence: of each bound, in (0.5, 1).
    """
    freedom = max(images - 1, 1)
    error *= math.sqrt(1 + 1 / freedom)
    margin = student_quantile(confidence, freedom) * error
    return Bounds(estimate, error, estimate - margin, estimate + margin, confidence)


def student_quantile(probability: float, freedom: int) -> float:
    """Returns a quantile of Student's t by its expansion around the normal one, to 0.002 from 19 degrees of freedom on.

    Args:
        probability: in (0.5, 1); the expansion is meant for up to 0.99.
        freedom: degrees of freedom, at least 1.
    """
    z = NormalDist().inv_cdf(probability)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def draw_weights(images: int, groups: Optional[Indices] = None, *, resamples: int = RESAMPLES, seed: int = 0) -> Counts:
    """Draws sets of images with replacement; copies of an image are drawn together, since they say nothing new.

    Args:
        images: number of images.
        groups: int `[I]`, which of the G different images each one is; None if all differ.
        resamples: number of sets.
        seed: of the sets.

    Returns:
        int32 `[1 + resamples, I]`, how often each set holds each image; the first set holds each once.
    """
    groups = np.arange(images) if groups is None else groups
    different = int(groups.max()) + 1 if images else 0
    drawn = np.random.default_rng(seed).multinomial(different, np.full(different, 1 / different), size=resamples)
    return np.concatenate([np.ones((1, images), np.int32), drawn.astype(np.int32)[:, groups]])


def compare(
    reference: Matches,
    other: Matches,
    *,
    area: str = "all",
    groups: Optional[Indices] = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ApDelta:
    """Resamples the images with replacement, the same for both models, and takes the difference of AP on each set.

    Args:
        reference: matches of the reference.
        other: matches of the model that is compared with it, on the same images.
        area: one of `AREAS`.
        groups: copies of an image among the images, see `draw_weights`.
        resamples: number of sets.
        seed: of the sets.

    Raises:
        ValueError: the two were not scored on the same images and classes.
    """
    if (reference.image_ids, reference.class_names) != (other.image_ids, other.class_names):
        raise ValueError("expected matches of the same images and classes")
    images = len(reference.image_ids)
    weights = draw_weights(images, groups, resamples=resamples, seed=seed)
    before, after = (average_precision(item, weights, area) for item in (reference, other))
    change = 100 * np.column_stack([mean_ap(after) - mean_ap(before), after - before])
    classes = reference.by_area[area]
    return ApDelta(
        estimate=change[0],
        samples=change[1:],
        reference=100 * np.append(mean_ap(before[:1]), before[0]),
        class_names=reference.class_names,
        presence=_by_group(np.array([item.objects > 0 for item in classes]).reshape(len(classes), images), groups),
        objects=tuple(int(item.objects.sum()) for item in classes),
    )


def _by_group(presence: NDArray[np.bool_], groups: Optional[Indices]) -> NDArray[np.bool_]:
    """Tells of each group of images, rather than of each image, which classes it holds."""
    if groups is None:
        return presence
    found = np.zeros((len(presence), int(groups.max()) + 1), np.bool_)
    for row, values in zip(found, presence):
        row[groups[values]] = True
    return found
