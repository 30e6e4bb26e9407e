"""Tests the charts of AP against cost: the Pareto front, and labels that hide nothing."""

from __future__ import annotations

import itertools
import math

import pytest

from export.report import scatter
from export.report.intervals import place_bounds
from export.report.scatter import Model, pareto_front
from runtime.viz.label_layout import overlap


def models(*pairs: tuple[float, float], status: str = "passed") -> list[Model]:
    return [Model(f"model{index}.onnx", status, cost, ap) for index, (cost, ap) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("pairs", "front"),
    [
        ([(1, 50)], [0]),
        ([(2, 50), (1, 40)], [1, 0]),
        ([(1, 50), (2, 40)], [0]),  # dominated
        ([(1, 50), (1, 60)], [1]),
        ([(1, 50), (2, 50)], [0]),  # dearer for nothing
        ([(1, 50), (1, 50)], [0]),
    ],
)
def test_the_pareto_front(pairs: list[tuple[float, float]], front: list[int]) -> None:
    given = models(*pairs)
    assert pareto_front(given) == [given[index] for index in front]


def test_a_failed_model_is_not_on_the_front() -> None:
    good, bad = models((2, 50))[0], models((1, 60), status="failed")[0]
    assert pareto_front([bad, good]) == [good]
    assert scatter.scatter([bad]).front == ""


@pytest.mark.parametrize(
    "given",
    [
        models((1, 0)),
        models(*[(10, 50)] * 8),  # all in one place
        models(*[(10 + index / 100, 50 + index / 1000) for index in range(12)]),
        models(*[(10.0**index, 20.0 * index) for index in range(-2, 5)]),
        [Model("x" * 300, "passed", cost, ap) for cost, ap in itertools.product((1, 2, 4), (1, 2, 3))],
    ],
)
def test_labels_lie_inside_and_hide_neither_marks_nor_each_other(given: list[Model]) -> None:
    drawn = scatter.scatter(given)
    boxes = []
    for point in drawn.points:
        assert point.label is not None
        assert scatter.LEFT <= point.x <= scatter.RIGHT and scatter.TOP <= point.y <= scatter.BOTTOM
        left, base = point.label
        boxes.append((left, base - 0.8 * scatter.FONT, left + len(point.text) * 0.62 * scatter.FONT, base + 0.2 * scatter.FONT))
        assert left >= 0 and boxes[-1][2] <= scatter.WIDTH and boxes[-1][1] >= 0 and boxes[-1][3] <= scatter.BOTTOM
    marks = [(point.x - 4, point.y - 4, point.x + 4, point.y + 4) for point in drawn.points]
    for one, other in itertools.combinations(boxes, 2):
        assert not overlap(one, other)
    assert not any(overlap(box, mark) for box in boxes for mark in marks)
    assert 1 <= len(drawn.x_ticks) <= 12 and 2 <= len(drawn.y_ticks) <= 8


@pytest.mark.parametrize(("lower", "upper"), [(-0.9, -0.6), (-0.6, -0.4), (-0.4, 0.3), (-40.0, -39.0), (-9.0, 9.0)])
@pytest.mark.parametrize("budget", [0.5, 0.0])
def test_bounds_lie_on_their_side_of_the_budget(lower: float, upper: float, budget: float) -> None:
    placed = place_bounds({"lower": lower, "upper": upper, "estimate": (lower + upper) / 2}, budget)
    assert 0 <= placed.lower <= placed.estimate <= placed.upper <= 100
    assert (placed.lower >= 50) == (lower >= -budget)
    assert (placed.upper < 50) == (upper < -budget)
    assert placed.zero == (75 if budget else 50)
    assert placed.cut_left == (placed.lower == 0 and budget > 0)


def test_bounds_of_no_width_at_no_budget_have_a_place() -> None:
    placed = place_bounds({"lower": 0.0, "upper": 0.0, "estimate": 0.0}, 0.0)
    assert placed.lower == placed.upper == 50 and math.isfinite(placed.zero)
