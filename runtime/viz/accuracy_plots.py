"""Plots precision against recall, and F1 against the score threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from runtime.evaluation.operating_point import IOU, Curve, Curves, OperatingPoint, Point
from runtime.ops.image import Image
from runtime.viz.annotate import class_color
from runtime.viz.canvas import (
    FAINT,
    GAP,
    INK,
    Color,
    beside,
    class_label,
    paper,
    shorten,
    text_size,
    titled,
    write,
)
from runtime.viz.chart import Axis, Chart, Floats

_OTHERS: Color = (190, 190, 190)  # curves of classes that the legend has no room for
_LEGEND, _LINE, _MOST_NAMED = 300, 24, 14


def plot_precision_recall(curves: Curves, chosen: OperatingPoint) -> Image:
    """Draws precision against recall of all classes together and of each, uint8 BGR; a circle marks the operating point."""

    def line(curve: Curve) -> Floats:
        return np.stack([curve.recall, curve.precision], axis=1)

    chart = Chart(Axis("recall"), Axis("precision"))
    _draw_curves(chart, [line(curve) for curve in (curves.overall, *_shown(curves).values())], _colors(curves))
    if chosen.overall:
        chart.mark(chosen.overall.recall, chosen.overall.precision)
    legend = _legend("precision / recall, %", curves, chosen, lambda at: f"{_percent(at.precision)} / {_percent(at.recall)}")
    return titled("Precision against recall", f"circle: {describe(chosen)}", beside([chart.image, legend]))


def plot_f1(curves: Curves, chosen: OperatingPoint) -> Image:
    """Draws F1 against the score threshold of all classes together and of each, uint8 BGR; a circle marks the threshold."""

    def line(curve: Curve) -> Floats:
        """Steps down from threshold 1: a threshold between two scores lets in what the higher one does."""
        x = np.concatenate([[1.0], np.repeat(curve.thresholds, 2)])
        return np.stack([x, np.concatenate([[0.0, 0.0], np.repeat(curve.f1, 2)[:-1]])[: len(x)]], axis=1)

    chart = Chart(Axis("score threshold"), Axis("F1"))
    _draw_curves(chart, [line(curve) for curve in (curves.overall, *_shown(curves).values())], _colors(curves))
    if chosen.overall:
        chart.mark(chosen.overall.threshold, chosen.overall.f1)
    legend = _legend("F1, %", curves, chosen, lambda at: _percent(at.f1))
    return titled("F1 against the score threshold", f"circle: {describe(chosen)}", beside([chart.image, legend]))


def _shown(curves: Curves) -> dict[str, Curve]:
    """Returns the curves of the classes that have objects; the others have neither recall nor F1."""
    return {name: curve for name, curve in curves.per_class.items() if curve.objects}


def _named(curves: Curves) -> list[str]:
    """Returns the classes that the legend names: those with the most objects, in their own order."""
    shown = _shown(curves)
    most = sorted(shown, key=lambda name: -shown[name].objects)[:_MOST_NAMED]
    return [name for name in shown if name in most]


def _colors(curves: Curves) -> list[Color]:
    """Returns the color of the curve of all classes, then those of the shown ones."""
    named = _named(curves)
    index = {name: number for number, name in enumerate(curves.per_class)}
    return [INK, *(class_color(index[name]) if name in named else _OTHERS for name in _shown(curves))]


def _draw_curves(chart: Chart, lines: Sequence[Floats], colors: Sequence[Color]) -> None:
    """Draws curves, the first one thick and on top, those in gray below the others."""
    order = sorted(range(len(lines)), key=lambda index: (index == 0, colors[index] != _OTHERS))
    for index in order:
        chart.line(lines[index], colors[index], 1 if index else 2)


def _legend(heading: str, curves: Curves, chosen: OperatingPoint, text_of: Callable[[Point], str]) -> Image:
    """Draws a row for all classes and for each named one, with its figures at the operating point."""
    named, colors = _named(curves), dict(zip(_shown(curves), _colors(curves)[1:]))
    labels = {name: class_label(name, index) for index, name in enumerate(curves.per_class)}
    overall = text_of(chosen.overall) if chosen.overall else "-"
    figures = {name: text_of(at) for name, at in chosen.per_class.items()}
    rows = [("all classes", INK, overall), *((labels[name], colors[name], figures.get(name, "-")) for name in named)]
    left_out = len(colors) - len(named)
    if left_out:
        rows.append((f"and {left_out} more classes", _OTHERS, ""))
    legend = paper(_LEGEND, GAP + (len(rows) + 1) * _LINE)
    write(legend, heading, (_LEGEND - text_size(heading, 0.42)[0], GAP + 12), 0.42, FAINT)
    for index, (name, color, text) in enumerate(rows, 1):
        y = GAP + 12 + index * _LINE
        cv2.line(legend, (0, y - 5), (22, y - 5), color, 3 if index == 1 else 2, cv2.LINE_AA)
        wide = text_size(text, 0.5)[0]
        write(legend, shorten(name, 0.5, _LEGEND - 30 - wide - 12), (30, y), 0.5, INK)
        write(legend, text, (_LEGEND - wide, y), 0.5, INK)
    return legend


def describe(chosen: OperatingPoint) -> str:
    """Names the threshold, the rule that chose it, and the IoU of a match."""
    return f"score >= {chosen.threshold:.8g} ({chosen.rule}), IoU {IOU:g}" if chosen.threshold else f"none has {chosen.rule}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
