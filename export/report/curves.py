"""Lays out two line charts, precision against recall and F1 against the score threshold, with one line a model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from export.report.scatter import BOTTOM, LEFT, RIGHT, TOP
from runtime.viz.chart import ticks

Curve = Mapping[str, Any]
Pair = tuple[Optional[float], Optional[float]]

_STEP = 10  # the axes begin and end at tenths
_SHOWN = 0.8  # of the best F1: its axis begins there, since the best is what thresholds are chosen by


@dataclass(frozen=True)
class Line:
    """Line of one model, in the chart's pixels.

    Attributes:
        name: of the model.
        path: SVG path; empty without a point.
        mark: place of its marked point; None where it has none on the chart.
        note: says where the mark is.
    """

    name: str
    path: str
    mark: tuple[float, float] | None
    note: str


@dataclass(frozen=True)
class LineChart:
    """A line chart in pixels.

    Attributes:
        lines: in the order of the models.
        x_ticks: position and value of each tick.
        y_ticks: likewise.
        guide: x of the vertical line at the operating threshold; None for no such line.
    """

    lines: list[Line]
    x_ticks: list[tuple[float, float]]
    y_ticks: list[tuple[float, float]]
    guide: float | None = None


@dataclass(frozen=True)
class _Axes:
    """Ranges of both axes."""

    left: float
    right: float
    bottom: float
    top: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Converts a point to pixels of the chart; outside the ranges it lies outside the axes."""
        across, up = (x - self.left) / (self.right - self.left), (y - self.bottom) / (self.top - self.bottom)
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    def line(self, name: str, points: Sequence[Pair], mark: Pair, note: str) -> Line:
        """Places a line; a point that lacks one of its values is left out."""
        drawn = [self.place(x, y) for x, y in points if x is not None and y is not None]
        path = "".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(drawn))
        x, y = mark
        inside = x is not None and y is not None and self.left <= x <= self.right and self.bottom <= y <= self.top
        return Line(name, path, self.place(x, y) if inside and x is not None and y is not None else None, note)

    def ticks(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """Places the ticks of both axes."""
        x_ticks = [(self.place(value, 0)[0], value) for value in ticks(self.left, self.right)]
        return x_ticks, [(self.place(0, value)[1], value) for value in ticks(self.bottom, self.top)]


def precision_recall(curves: Mapping[str, Curve]) -> LineChart:
    """Lays out precision upwards and recall to the right; the marks are at the operating threshold.

    Args:
        curves: by model, see `report_data.sample_curve`.
    """
    axes = _Axes(*_ends(_known(curves, "recall")), *_ends(_known(curves, "precision")))
    lines = []
    for name, curve in curves.items():
        at = curve["at_threshold"]
        note = f"precision {_shown(at['precision'])}, recall {_shown(at['recall'])} at the operating threshold"
        lines.append(axes.line(name, list(zip(curve["recall"], curve["precision"])), (at["recall"], at["precision"]), note))
    return LineChart(lines, *axes.ticks())


def f1_by_threshold(curves: Mapping[str, Curve], threshold: float) -> LineChart:
    """Lays out F1 upwards and the score threshold to the right; the marks are at the best F1 of each model.

    Args:
        curves: by model, see `report_data.sample_curve`.
        threshold: operating threshold.
    """
    bests = {name: curve["best_f1"] or {"threshold": None, "f1": None} for name, curve in curves.items()}
    tops = [best["f1"] for best in bests.values() if best["f1"] is not None] or [1.0]
    least = _SHOWN * min(tops)
    used = [x for curve in curves.values() for x, f1 in zip(curve["thresholds"], curve["f1"]) if f1 and f1 >= least]
    marks = [best["threshold"] for best in bests.values() if best["threshold"] is not None]
    axes = _Axes(*_ends([*used, *marks, threshold]), *_ends([least, *tops]))
    lines = []
    for name, curve in curves.items():
        best = bests[name]
        note = f"best F1 {_shown(best['f1'])} at {_shown(best['threshold'])}"
        lines.append(axes.line(name, list(zip(curve["thresholds"], curve["f1"])), (best["threshold"], best["f1"]), note))
    return LineChart(lines, *axes.ticks(), guide=axes.place(threshold, 0)[0])


def _known(curves: Mapping[str, Curve], key: str) -> list[float]:
    """Returns the values that exist of all curves."""
    every = itertools.chain.from_iterable(curve[key] for curve in curves.values())
    return [value for value in every if value is not None]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Returns the tenths around some values in [0, 1], two tenths apart or more; 0 and 1 around none."""
    if not values:
        return 0.0, 1.0
    low, high = math.floor(min(values) * _STEP), math.ceil(max(values) * _STEP)
    if high - low < 2:
        low, high = max(0, low - 1), min(_STEP, high + 1)
    return low / _STEP, high / _STEP


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
