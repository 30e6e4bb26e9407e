"""Measures precision, recall and F1 against the score threshold, and chooses the threshold to detect with.

A detection is right if it matches an object of its class at IoU 0.5; detections of crowds count neither as right nor as
wrong. A figure that does not exist is NaN: the precision of no detections, the recall of a class without objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.evaluation.matching import ClassMatches, Matches

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

IOU = 0.5
SAMPLED_THRESHOLDS = tuple(index / 100 for index in range(1, 101))
_ROW = 0  # of `ClassMatches.matched`: the matches at `IOU`
BEST_F1 = "best F1"
_DIGITS, _LEAST_WIDTH = 8, 1e-6  # of thresholds between two scores, which float32 tells apart by 6e-8
_BELOW = 0.999  # of the lowest score of all: a threshold there lets in few detections that were not measured


@dataclass(frozen=True)
class Point:
    """Counts of the detections whose score is at least a threshold.

    Attributes:
        threshold: the lowest score that counts.
        right: number of detections that match an object.
        wrong: number of detections that match none.
        objects: number of objects to be found.
    """

    threshold: float
    right: int
    wrong: int
    objects: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right, in [0, 1]; NaN without detections."""
        return float(_ratio(self.right, self.right + self.wrong))

    @property
    def recall(self) -> float:
        """Share of the objects that are found, in [0, 1]; NaN without objects."""
        return float(_ratio(self.right, self.objects))

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]: 2 right / (detections + objects); NaN without objects."""
        return float(_f1(self.right, self.wrong, self.objects))

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures and counts for JSON; None for NaN."""
        figures = {name: number_or_none(getattr(self, name)) for name in ("threshold", "precision", "recall", "f1")}
        return {**figures, "right": self.right, "wrong": self.wrong, "objects": self.objects}


@dataclass(frozen=True, eq=False)
class Curve:
    """Counts at each threshold that tells detections apart.

    Attributes:
        thresholds: float64 `[P]`, the different scores above 0, highest first.
        right: int64 `[P]`, number of detections from each threshold on that match an object.
        wrong: int64 `[P]`, number of those that match none.
        objects: number of objects to be found.
    """

    thresholds: Floats
    right: Counts
    wrong: Counts
    objects: int

    @property
    def precision(self) -> Floats:
        """Precision at each threshold, `[P]`; see `Point`."""
        return _ratio(self.right, self.right + self.wrong)

    @property
    def recall(self) -> Floats:
        """Recall at each threshold, `[P]`; it never falls along the curve. See `Point`."""
        return _ratio(self.right, self.objects)

    @property
    def f1(self) -> Floats:
        """F1 at each threshold, `[P]`; see `Point`."""
        return _f1(self.right, self.wrong, self.objects)

    def at(self, threshold: float) -> Point:
        """Returns the counts of the detections whose score is at least `threshold`."""
        count = int(np.count_nonzero(self.thresholds >= threshold))
        right, wrong = (int(values[count - 1]) if count else 0 for values in (self.right, self.wrong))
        return Point(threshold, right, wrong, self.objects)

    def sample(self) -> dict[str, Any]:
        """Returns precision, recall and F1 at `SAMPLED_THRESHOLDS` for JSON; None where one does not exist."""
        points = [self.at(value) for value in SAMPLED_THRESHOLDS]
        sampled = {name: [number_or_none(getattr(point, name)) for point in points] for name in ("precision", "recall", "f1")}
        return {"iou": IOU, "thresholds": list(SAMPLED_THRESHOLDS), **sampled}

    def best_f1(self) -> Optional[Point]:
        """Returns the point of the highest F1, on a tie that of the highest threshold; None if no detection is right."""
        return self._point(int(np.argmax(self.f1))) if self.right.any() else None

    def best_precision(self) -> Optional[Point]:
        """Returns the point of the highest precision, on a tie that of the lowest threshold; None if no detection is right."""
        return self.lowest_for_precision(float(np.nanmax(self.precision))) if self.right.any() else None

    def lowest_for_precision(self, precision: float) -> Optional[Point]:
        """Returns the point of the lowest threshold whose precision is at least this one, so with the highest recall.

        The precision at a higher threshold may be lower: it need not rise with the threshold.

        Args:
            precision: in (0, 1].

        Returns:
            The point; None if no threshold has this precision.
        """
        reached = np.flatnonzero(self.precision >= precision)
        return self._point(int(reached[-1])) if reached.size else None

    def _point(self, index: int) -> Point:
        """Returns the point of the detections up to an index, with a threshold below the last one's score.

        A score differs by its last digits between backends and batch sizes, so the threshold keeps its distance from it.
        """
        last = float(self.thresholds[index])
        is_lowest = index + 1 == len(self.thresholds)
        return self.at(between(last * _BELOW if is_lowest else float(self.thresholds[index + 1]), last))


def between(low: float, high: float) -> float:
    """Returns the number of the fewest decimals in the middle half of two scores; `high` where they all but coincide."""
    middle, width = (low + high) / 2, high - low
    rounded = (round(middle, digits) for digits in range(2, _DIGITS + 1))
    near = (value for value in rounded if abs(value - middle) <= width / 4)
    return next(near, high) if width >= _LEAST_WIDTH else high


@dataclass(frozen=True, eq=False)
class Curves:
    """Curves of a model on a split.

    Attributes:
        overall: of the detections of all classes together.
        per_class: by class name.
    """

    overall: Curve
    per_class: dict[str, Curve]


@dataclass(frozen=True)
class OperatingPoint:
    """Threshold that a rule chooses for all classes, and what it means for each.

    A chosen threshold lies between the score of the last detection that it lets in and that of the next one.

    Attributes:
        rule: `best F1`, or such as `precision >= 0.95`.
        overall: all classes together at the threshold; None if no threshold meets the rule.
        per_class: each class at that same threshold; empty if there is none.
        own: each class at the threshold that the rule chooses for it alone; None if none does.
    """

    rule: str
    overall: Optional[Point]
    per_class: dict[str, Point]
    own: dict[str, Optional[Point]]

    @property
    def threshold(self) -> Optional[float]:
        """The threshold; None if none meets the rule."""
        return self.overall.threshold if self.overall else None

    def to_dict(self) -> dict[str, Any]:
        """Returns everything for JSON; None for what does not exist."""
        empty = dict.fromkeys(("threshold", "precision", "recall", "f1"))
        at_own = {name: point.to_dict() if point else None for name, point in self.own.items()}
        per_class = {name: {**point.to_dict(), "own": at_own[name]} for name, point in self.per_class.items()}
        return {"rule": self.rule, "iou": IOU, **(self.overall.to_dict() if self.overall else empty), "per_class": per_class}


def measure_curves(matches: Matches) -> Curves:
    """Measures the curve of all classes together and that of each."""
    classes = matches.by_area["all"]
    return Curves(measure_curve(classes), {name: measure_curve([item]) for name, item in zip(matches.class_names, classes)})


def measure_curve(classes: Sequence[ClassMatches]) -> Curve:
    """Measures one curve of the detections of some classes."""
    scores: Floats = np.concatenate([np.zeros(0), *(item.scores for item in classes)])
    none = np.zeros(0, np.bool_)
    matched = np.concatenate([none, *(item.matched[_ROW] for item in classes)])
    counted = ~np.concatenate([none, *(item.ignored[_ROW] for item in classes)]) & (scores > 0)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0]
    falling = scores[order]
    last = np.flatnonzero(np.append(np.diff(falling) != 0, True)[: len(falling)])  # of the detections of equal score
    right, wrong = (np.cumsum((mask & counted)[order], dtype=np.int64)[last] for mask in (matched, ~matched))
    return Curve(falling[last], right, wrong, sum(int(item.objects.sum()) for item in classes))


def choose(curves: Curves, precision: Optional[float] = None) -> OperatingPoint:
    """Chooses the threshold of best F1 or, if a precision is wanted, the lowest one that has it.

    Args:
        curves: of the model on a split.
        precision: the wanted one, in (0, 1].
    """

    def find(curve: Curve) -> Optional[Point]:
        return curve.best_f1() if precision is None else curve.lowest_for_precision(precision)

    rule = BEST_F1 if precision is None else f"precision >= {precision:g}"
    overall = find(curves.overall)
    at = {name: curve.at(overall.threshold) for name, curve in curves.per_class.items()} if overall else {}
    return OperatingPoint(rule, overall, at, {name: find(curve) for name, curve in curves.per_class.items()})


def number_or_none(value: float) -> Optional[float]:
    """Returns None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _ratio(part: Any, whole: Any) -> Floats:
    """Divides counts; NaN where the whole is 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.true_divide(part, whole), np.float64)


def _f1(right: Any, wrong: Any, objects: int) -> Floats:
    f1 = _ratio(2 * np.asarray(right), np.asarray(right) + wrong + objects)
    return f1 if objects else np.full_like(f1, np.nan)
