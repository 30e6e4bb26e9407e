"""Precision, recall, F1 and the threshold: by hand, and against loops over boxes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.datasets.dataset import Dataset
from runtime.evaluation.matching import AREAS, IOU_THRESHOLDS, ClassMatches, Matches, read_matches, run_cocoeval
from runtime.evaluation.operating_point import Curve, Point, between, choose, measure_curve, measure_curves
from tests.support.box_loops import CATEGORIES, IDS, Record, detected, made_up, pairs

MakeCoco = Callable[..., Path]
RIGHT, WRONG, IGNORED = "right", "wrong", "ignored"


def class_matches(found: Sequence[tuple[float, str]], objects: int) -> ClassMatches:
    """Detections of one class, best first, in one image; every IoU threshold but the first matches none."""
    matched = np.zeros((IOU_THRESHOLDS, len(found)), bool)
    ignored = np.zeros_like(matched)
    matched[0] = [kind != WRONG for _, kind in found]
    ignored[0] = [kind == IGNORED for _, kind in found]
    scores = np.array([score for score, _ in found], np.float64)
    return ClassMatches(np.zeros(len(found), np.int32), scores, matched, ignored, np.array([objects], np.int32))


def matches(**classes: ClassMatches) -> Matches:
    return Matches((1,), tuple(classes), dict.fromkeys(AREAS, tuple(classes.values())))


TABLE = [(0.9, RIGHT), (0.8, WRONG), (0.7, IGNORED), (0.7, RIGHT), (0.7, RIGHT), (0.4, WRONG), (0.4, WRONG), (0.3, RIGHT)]


def test_a_curve_by_hand() -> None:
    curve = measure_curve([class_matches(TABLE, objects=5)])
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.7, 0.4, 0.3]
    assert curve.right.tolist() == [1, 1, 3, 3, 4]
    assert curve.wrong.tolist() == [0, 1, 1, 3, 3]
    assert curve.precision.tolist() == [1, 1 / 2, 3 / 4, 3 / 6, 4 / 7]
    assert curve.recall.tolist() == [1 / 5, 1 / 5, 3 / 5, 3 / 5, 4 / 5]
    assert curve.f1.tolist() == [2 / 6, 2 / 7, 6 / 9, 6 / 11, 8 / 12]


def test_points_by_hand() -> None:
    curve = measure_curve([class_matches(TABLE, objects=5)])
    assert curve.at(0.7) == curve.at(0.7) == Point(0.7, right=3, wrong=1, objects=5)
    assert curve.at(0.71) == Point(0.71, 1, 1, 5)
    assert curve.at(0.01) == Point(0.01, 4, 3, 5)
    point = curve.at(0.7)
    assert (point.precision, point.recall, point.f1) == (0.75, 0.6, pytest.approx(2 * 0.75 * 0.6 / 1.35))
    above = curve.at(0.95)
    assert math.isnan(above.precision) and (above.recall, above.f1) == (0, 0)
    assert above.to_dict() == {
        "threshold": 0.95,
        "precision": None,
        "recall": 0,
        "f1": 0,
        "right": 0,
        "wrong": 0,
        "objects": 5,
    }


def test_the_best_f1_is_at_the_highest_threshold_of_equals() -> None:
    assert measure_curve([class_matches(TABLE, objects=5)]).best_f1() == Point(0.55, 3, 1, 5)  # 6 / 9, as at 0.3: 8 / 12
    assert measure_curve([class_matches(TABLE, objects=9)]).best_f1() == Point(0.2998, 4, 3, 9)  # 8 / 16 beats 6 / 13


@pytest.mark.parametrize(
    ("low", "high", "threshold"),
    [
        (0.4, 0.7, 0.55),
        (0.0, 1.0, 0.5),
        (0.3605, 0.3612, 0.361),
        (0.355, 0.3601, 0.358),  # not 0.36, which is too near
        (0.99, 1.0, 0.995),
        (0.5, 0.500_004, 0.500_002),
        (0.5, 0.500_000_9, 0.500_000_9),  # too near each other
    ],
)
def test_a_threshold_keeps_its_distance_from_both_scores(low: float, high: float, threshold: float) -> None:
    assert between(low, high) == threshold


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_a_threshold_tells_two_scores_apart_in_float32(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = np.float32(between(low, high))
    assert low == high or np.float32(low) < found <= np.float32(high)
    assert high - low < 1e-6 or min(found - np.float32(low), np.float32(high) - found) > 0.2 * (high - low)


@pytest.mark.parametrize(
    ("wanted", "threshold"),
    [(1.0, 0.85), (0.8, 0.85), (0.75, 0.55), (0.6, 0.55), (4 / 7, 0.2998), (0.55, 0.2998), (0.01, 0.2998)],
)
def test_the_lowest_threshold_of_a_precision(wanted: float, threshold: float) -> None:
    point = measure_curve([class_matches(TABLE, objects=5)]).lowest_for_precision(wanted)
    assert point is not None and point.threshold == threshold


def test_a_wrong_detection_on_top_does_not_hide_what_is_below() -> None:
    curve = measure_curve([class_matches([(0.9, WRONG), (0.8, RIGHT), (0.7, RIGHT), (0.6, RIGHT), (0.2, WRONG)], objects=4)])
    point = curve.lowest_for_precision(0.75)
    assert point is not None and (point.threshold, point.precision) == (0.4, 0.75)
    assert curve.lowest_for_precision(0.8) is None


@pytest.mark.parametrize(
    ("found", "objects", "precision", "recall", "f1"),
    [
        ([], 0, None, None, None),  # nothing found, nothing to find
        ([], 3, None, 0, 0),
        ([(0.9, WRONG)], 0, 0, None, None),
        ([(0.9, WRONG)], 3, 0, 0, 0),
        ([(0.9, IGNORED)], 3, None, 0, 0),
        ([(0.0, RIGHT)], 3, None, 0, 0),  # thresholds are above 0
    ],
)
def test_figures_that_do_not_exist(
    found: list[tuple[float, str]], objects: int, precision: Optional[float], recall: Optional[float], f1: Optional[float]
) -> None:
    curve = measure_curve([class_matches(found, objects)])
    got = curve.at(0.5).to_dict()
    assert (got["precision"], got["recall"], got["f1"]) == (precision, recall, f1)
    assert curve.best_f1() is None and curve.lowest_for_precision(0.01) is None
    chosen = choose(measure_curves(matches(dot=class_matches(found, objects))))
    assert (chosen.threshold, chosen.per_class, chosen.own) == (None, {}, {"dot": None})
    assert chosen.to_dict() == {
        "rule": "best F1",
        "iou": 0.5,
        **dict.fromkeys(("threshold", "precision", "recall", "f1")),
        "per_class": {},
    }


def test_one_threshold_for_all_classes() -> None:
    dots = class_matches([(0.9, RIGHT), (0.6, RIGHT), (0.5, WRONG)], objects=2)
    rings = class_matches([(0.8, WRONG), (0.3, RIGHT)], objects=1)
    found = choose(measure_curves(matches(dot=dots, ring=rings, none=class_matches([], 0))))
    # all together, 3 objects: 0.9 2/4, 0.8 2/5, 0.6 4/6, 0.5 4/7, 0.3 6/8
    low = 0.2998  # below the lowest score of all, 0.3
    assert found.overall == Point(low, 3, 2, 3)
    assert found.per_class == {"dot": Point(low, 2, 1, 2), "ring": Point(low, 1, 1, 1), "none": Point(low, 0, 0, 0)}
    assert found.own == {"dot": Point(0.55, 2, 0, 2), "ring": Point(low, 1, 1, 1), "none": None}
    strict = choose(measure_curves(matches(dot=dots, ring=rings)), precision=0.6)
    assert (strict.rule, strict.overall) == ("precision >= 0.6", Point(low, 3, 2, 3))
    assert strict.own == {"dot": Point(0.4998, 2, 1, 2), "ring": None}
    as_json = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert as_json["per_class"]["none"] == {
        "threshold": low,
        "precision": None,
        "recall": None,
        "f1": None,
        "right": 0,
        "wrong": 0,
        "objects": 0,
        "own": None,
    }


def test_a_set_without_classes() -> None:
    curves = measure_curves(Matches((), (), dict.fromkeys(AREAS, ())))
    assert (curves.overall.objects, len(curves.overall.thresholds), curves.per_class) == (0, 0, {})
    assert choose(curves).overall is None


def same_detections(found: Optional[Point], expected: Optional[Point]) -> None:
    """The two points let in the same detections; the threshold of the one lies below the lowest score, that of the other."""
    assert (found is None) == (expected is None)
    if found and expected:
        assert dataclasses.replace(found, threshold=expected.threshold) == expected
        assert 0 < found.threshold < expected.threshold


FOUND = st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]), st.sampled_from([RIGHT, WRONG, IGNORED])), max_size=30)


def best_first(found: list[tuple[float, str]]) -> list[tuple[float, str]]:
    return sorted(found, key=lambda item: -item[0])


@given(FOUND, FOUND, st.integers(0, 5))
def test_a_lower_threshold_finds_no_less(first: list[tuple[float, str]], other: list[tuple[float, str]], missed: int) -> None:
    both = [best_first(first), best_first(other)]
    objects = [sum(kind == RIGHT for _, kind in found) + missed for found in both]
    curve = measure_curve([class_matches(found, count) for found, count in zip(both, objects)])
    assert (np.diff(curve.thresholds) < 0).all()
    assert (np.diff(curve.right) >= 0).all() and (np.diff(curve.wrong) >= 0).all()
    if sum(objects):
        assert (np.diff(curve.recall) >= 0).all() and (curve.recall <= 1).all()
    for wanted in (0.3, 0.9):
        enough = [at for at in map(curve.at, curve.thresholds.tolist()) if at.precision >= wanted]
        same_detections(curve.lowest_for_precision(wanted), enough[-1] if enough else None)
    best = curve.best_f1()
    assert best is None or best.f1 == max(map(float, curve.f1))


def by_loops(dataset: Dataset, found: list[Record], threshold: float, category_id: int) -> Point:
    """Counts of one class at a threshold, image by image."""
    right = wrong = objects = 0
    for image_id in IDS:
        labels, mine = (
            [item for item in items if (item["image_id"], item["category_id"]) == (image_id, category_id)]
            for items in (dataset.annotations, found)
        )
        matched, _ = pairs(labels, [item for item in mine if item["score"] >= threshold])
        right += sum(one is not None and other is not None for one, other in matched)
        wrong += sum(one is None for one, _ in matched)
        objects += sum(one is not None for one, _ in matched)
    return Point(threshold, right, wrong, objects)


@pytest.mark.parametrize("seed", range(6))
def test_every_count_of_every_class_is_that_of_loops(seed: int, make_coco: MakeCoco) -> None:
    rng = np.random.default_rng(seed)
    dataset = made_up(make_coco, rng)
    found = detected(dataset, rng)
    curves = measure_curves(read_matches(run_cocoeval(dataset, found, IDS), dataset))
    assert set(curves.per_class) == {"dot", "ring", "none"}
    assert curves.overall.thresholds.tolist() == sorted({item["score"] for item in found}, reverse=True)
    for threshold in [*curves.overall.thresholds.tolist(), 0.01, 0.55, 1.0]:
        slow = {name: by_loops(dataset, found, threshold, category_id) for category_id, name in CATEGORIES}
        for name, point in slow.items():
            assert curves.per_class[name].at(threshold) == point
        right, wrong, objects = (sum(getattr(p, key) for p in slow.values()) for key in ("right", "wrong", "objects"))
        assert curves.overall.at(threshold) == Point(threshold, right, wrong, objects)
    check_choices(curves.overall)


def check_choices(curve: Curve) -> None:
    """Compares the chosen thresholds with a search through all of them."""
    points = [curve.at(threshold) for threshold in curve.thresholds.tolist()]
    same_detections(curve.best_f1(), max(points, key=lambda point: (point.f1, point.threshold)))
    for wanted in (0.2, 0.5, 0.7):
        enough = [point for point in points if point.precision >= wanted]
        same_detections(curve.lowest_for_precision(wanted), enough[-1] if enough else None)
