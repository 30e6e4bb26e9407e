"""Line charts: round ticks inside the axes, lines where their values are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.viz.canvas import GAP, INK, PAPER
from runtime.viz.chart import Axis, Chart


@pytest.mark.parametrize(
    ("values", "logarithmic", "ends"),
    [
        ([0.13, 0.87], False, (0.0, 1.0)),
        ([3.0, 3.0], False, (0.0, 6.0)),
        ([-4.0], False, (-8.0, 0.0)),
        ([0.0, 0.0], False, (-1.0, 1.0)),
        ([], False, (0.0, 2.0)),
        ([1e-5, 0.00093], False, (0.0, 0.001)),
        ([12.0, float("nan"), 480.0, float("inf")], False, (0.0, 600.0)),
        ([12.0, 480.0, 0.0, -1.0], True, (10.0, 500.0)),
        ([7.0, 7.0], True, (5.0, 10.0)),
        ([5.0, 5.0], True, (5.0, 50.0)),
        ([], True, (1.0, 10.0)),
        ([1.5e-5, 1.2e-3], True, (1e-5, 2e-3)),
    ],
)
def test_an_axis_holds_its_values_between_round_ends(values: list[float], logarithmic: bool, ends: tuple[float, float]) -> None:
    axis = Axis.around("", values, logarithmic)
    for end, expected in zip((axis.low, axis.high), ends):
        assert end == pytest.approx(expected) or not logarithmic
    inside = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)]
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in inside)
    places = [float(axis.place(value)) for value, _ in axis.ticks()]
    assert 2 <= len(places) <= 12 and places == sorted(places)
    assert min(places) >= -1e-9 and max(places) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("axis", "texts"),
    [
        (Axis(""), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (Axis("", 1, 3, whole=True), ["1", "2", "3"]),
        (Axis("", 0, 300, whole=True), ["0", "50", "100", "150", "200", "250", "300"]),
        (Axis("", 0, 4e-5), ["0", "1e-05", "2e-05", "3e-05", "4e-05"]),
        (Axis("", 1, 1000, logarithmic=True), ["1", "10", "100", "1000"]),
    ],
)
def test_ticks_are_round_and_written_alike(axis: Axis, texts: list[str]) -> None:
    assert [text for _, text in axis.ticks()] == texts


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_line_passes_where_its_values_are(logarithmic: bool) -> None:
    chart = Chart(Axis("x", 0, 4), Axis("y", 1, 100, logarithmic), 400, 200)
    chart.line(np.array([[0.0, 1.0], [1.0, float("nan")], [3.0, 0.0 if logarithmic else np.inf], [4.0, 100.0]]), INK, 3)
    middle = 10.0 if logarithmic else 50.5
    x, y = (round(float(side)) for side in chart.place(2.0, middle))
    assert (x, y) == (round(float(chart.place(0.0, 1.0)[0])) + 200, GAP + 100)
    assert chart.image[y, x].tolist() == list(INK)
    assert chart.image[y - 37, x + 5].tolist() == chart.image[y + 37, x + 5].tolist() == list(PAPER)


def test_a_point_alone_is_seen_by_its_dot_and_no_point_draws_nothing() -> None:
    chart = Chart(Axis("x"), Axis("y"))
    empty = chart.image.copy()
    chart.line(np.empty((0, 2)), INK, dots=True)
    assert np.array_equal(chart.image, empty)
    chart.line(np.array([[0.5, 0.5]]), INK, dots=True)
    x, y = (round(float(side)) for side in chart.place(0.5, 0.5))
    assert chart.image[y + 1, x + 1].tolist() == list(INK)
