"""Draws the curves of a run from the rows of its `metrics.csv`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from runtime.ops.image import Image
from runtime.viz.annotate import class_color
from runtime.viz.canvas import GAP, INK, Color, beside, paper, stack, text_size, titled, write
from runtime.viz.chart import Axis, Chart, Floats
from train.run_log import number

Row = Mapping[str, str]

_WIDTH, _HEIGHT, _LEFT = 440, 260, 72  # of a chart between its axes, and on their left
_DOTTED = 40  # points up to which each is marked
_ACCURACY = ("AP", "AP50")


def draw_curves(title: str, rows: Sequence[Row], losses: Sequence[str]) -> Image:
    """Draws losses, AP, learning rate and gradient norm against the epochs, uint8 BGR.

    Args:
        title: of the run.
        rows: one an epoch.
        losses: names of the loss's values, `total` the last.
    """
    total_first = [*reversed(losses)]
    charts = [
        _chart("loss", rows, total_first, logarithmic=True),
        _chart("AP in %", rows, _ACCURACY, scale=100),
        _chart("learning rate", rows, ["learning_rate"]),
        _chart("norm of the gradient", rows, ["gradient_norm"], logarithmic=True),
    ]
    body = stack([beside(charts[:2]), beside(charts[2:])], gap=GAP)
    return titled(title, f"{len(rows)} epochs", body)


def _chart(title: str, rows: Sequence[Row], names: Sequence[str], logarithmic: bool = False, scale: float = 1.0) -> Image:
    """Draws the columns of these names, the first one black and on top."""
    lines = {name: points for name in names if len(points := _points(rows, name, scale))}
    values = [value for points in lines.values() for value in points[:, 1].tolist()]
    last = max((int(row["epoch"]) for row in rows), default=0)
    chart = Chart(
        Axis("epoch", 0, max(last, 2), whole=True),
        Axis.around(title, [*values, *([] if logarithmic else [0.0])], logarithmic),
        *(_WIDTH, _HEIGHT, _LEFT),
    )
    colors: list[Color] = [INK, *map(class_color, range(len(names)))]
    for name, points in reversed(lines.items()):
        chart.line(points, colors[names.index(name)], 2 if name == names[0] else 1, dots=len(points) <= _DOTTED)
    named = {name: colors[names.index(name)] for name in lines}
    return stack([_legend(named if len(names) > 1 else {}, chart.image.shape[1]), chart.image], gap=0)


def _points(rows: Sequence[Row], name: str, scale: float) -> Floats:
    """Reads the points `[N, 2]` of a column; an epoch without value has none."""
    found = [(float(row["epoch"]), scale * number(row, name)) for row in rows]
    return np.array([point for point in found if math.isfinite(point[1])], np.float64).reshape(-1, 2)


def _legend(colors: Mapping[str, Color], width: int) -> Image:
    """Writes the name of each line in its color, in a row."""
    row, left = paper(width, 16), _LEFT
    for name, color in colors.items():
        write(row, name, (left, 12), 0.42, color)
        left += text_size(name, 0.42)[0] + GAP
    return row
