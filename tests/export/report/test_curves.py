"""Tests the curves: sampled as the operating point measures them, and drawn inside their axes."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from export.report import curves
from export.report.curves import LineChart, f1_by_threshold, precision_recall
from export.report.report_data import sample_curve
from export.report.scatter import BOTTOM, LEFT, RIGHT, TOP
from runtime.evaluation.matching import Matches
from runtime.evaluation.operating_point import SAMPLED_THRESHOLDS, measure_curves
from tests.support.matches import make_matches, no_matches

SCORES = [0.95, 0.9, 0.7, 0.7, 0.42, 0.31, 0.3, 0.05, 0.01]


def made_up(seed: int, shift: float = 0.0) -> Matches:
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.beta(2, 2, 400))[::-1]
    right = rng.random(400) < scores
    return make_matches((scores * (1 - shift)).tolist(), right.tolist(), objects=250)


CASES = {
    "by hand": make_matches(SCORES, [index % 3 != 1 for index in range(9)], objects=8),
    "nothing right": make_matches(SCORES, [False] * 9, objects=8),
    "no detection": make_matches([], [], objects=8),
    "no object": make_matches(SCORES, [False] * 9, objects=0),
    "no class": no_matches(),
    "one detection": make_matches([0.5], [True], objects=1),
    "low scores": make_matches([0.03, 0.02], [True, True], objects=2),
    "many": made_up(0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sampled_curve_is_that_of_the_operating_point(name: str) -> None:
    found, curve = sample_curve(CASES[name], 0.31), measure_curves(CASES[name]).overall
    assert len(found["thresholds"]) <= 100
    for index, threshold in enumerate(found["thresholds"]):
        point = curve.at(threshold)
        for figure in ("precision", "recall", "f1"):
            value = getattr(point, figure)
            assert found[figure][index] == (None if math.isnan(value) else value)
    best = curve.best_f1()
    assert found["best_f1"] == (best.to_dict() if best else None)
    assert found["at_threshold"] == curve.at(0.31).to_dict()


def test_what_does_not_exist_is_none_in_a_sampled_curve() -> None:
    found = sample_curve(CASES["by hand"], 0.31)
    above = SAMPLED_THRESHOLDS.index(0.96)
    assert (found["precision"][above], found["recall"][above], found["f1"][above]) == (None, 0.0, 0.0)
    assert sample_curve(CASES["no object"], 0.31)["f1"] == [None] * 100


def charts(*names: str) -> dict[str, LineChart]:
    sampled: dict[str, Any] = {name: sample_curve(CASES[name], 0.31) for name in names}
    return {"recall": precision_recall(sampled), "threshold": f1_by_threshold(sampled, 0.31)}


@pytest.mark.parametrize("names", [(name,) for name in CASES] + [tuple(CASES), ("many", "low scores")])
def test_marks_ticks_and_the_guide_lie_inside_the_axes(names: tuple[str, ...]) -> None:
    for drawn in charts(*names).values():
        assert [line.name for line in drawn.lines] == list(names)
        assert all(LEFT - 0.01 <= x <= RIGHT + 0.01 for x, _ in drawn.x_ticks)
        assert all(TOP - 0.01 <= y <= BOTTOM + 0.01 for y, _ in drawn.y_ticks)
        assert len(drawn.x_ticks) >= 2 and len(drawn.y_ticks) >= 2
        for line in drawn.lines:
            assert line.mark is None or (LEFT <= line.mark[0] <= RIGHT and TOP <= line.mark[1] <= BOTTOM)
            assert "nan" not in line.path + line.note
        assert drawn.guide is None or LEFT <= drawn.guide <= RIGHT


def test_a_line_passes_through_the_sampled_values() -> None:
    drawn = charts("by hand")["threshold"]
    found = sample_curve(CASES["by hand"], 0.31)
    (x0, left), (x1, right) = drawn.x_ticks[0], drawn.x_ticks[-1]
    (y0, low), (y1, high) = drawn.y_ticks[0], drawn.y_ticks[-1]
    corners = [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", drawn.lines[0].path)]
    placed = [(left + (x - x0) / (x1 - x0) * (right - left), low + (y - y0) / (y1 - y0) * (high - low)) for x, y in corners]
    expected = list(zip(found["thresholds"], found["f1"]))
    assert placed == [pytest.approx(pair, abs=2e-3) for pair in expected]


def test_lower_scores_move_the_mark_of_the_best_f1_to_the_left() -> None:
    sampled = {"before": sample_curve(made_up(3), 0.31), "after": sample_curve(made_up(3, shift=0.2), 0.31)}
    before, after = curves.f1_by_threshold(sampled, 0.31).lines
    assert before.mark and after.mark and after.mark[0] < before.mark[0] - 5
    assert after.mark[1] == pytest.approx(before.mark[1])
