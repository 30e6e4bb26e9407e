"""Draws line charts over axes of any range; all images are uint8 BGR."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.viz.canvas import FAINT, GAP, INK, Color, paper, paste, text_size, upwards, write

Floats = NDArray[np.float64]

SIDE = 480
"""Pixels of a chart's sides between its axes, unless others are given."""
LEFT = 44
"""Pixels on the left of a chart for tick labels and the axis title, unless they need more."""

_GRID: Color = (225, 225, 225)
_BELOW, _RIGHT = 44, 24  # room for tick labels and axis title; for half a tick label
_TITLE = 16  # height of the title on the left
_SHIFT = 4  # bits of the fraction of a pixel
_SCALE = 1 << _SHIFT
_ROUND = (1.0, 2.0, 5.0)
_MANTISSAS = (1, 1.5, 2, 3, 4, 5, 7)


def ticks(low: float, high: float) -> list[float]:
    """Returns a few round values in a range."""
    least = (high - low) / 6
    unit = 10 ** math.floor(math.log10(least))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= least)
    return [float(f"{index * step:.9g}") for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns round values in a range above 0, the fewer the more powers of ten it spans."""
    mantissas = _MANTISSAS if high / low < 5 else (1, 2, 5) if high / low < 200 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{mantissa * 10.0**power:.9g}") for power in powers for mantissa in mantissas]
    return [value for value in values if low <= value <= high]


@dataclass(frozen=True)
class Axis:
    """Range of an axis.

    Attributes:
        title: written along it.
        low: value at its beginning; above 0 if it is logarithmic.
        high: value at its end, above `low`.
        logarithmic: true for equal lengths of equal ratios.
        whole: true for ticks at whole numbers alone.
    """

    title: str
    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False
    whole: bool = False

    @classmethod
    def around(cls, title: str, values: Iterable[float], logarithmic: bool = False) -> Axis:
        """Makes an axis from a round value to another that holds all finite values, and those above 0 if logarithmic."""
        kept = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)] or [1.0]
        low, high = min(kept), max(kept)
        if logarithmic:
            low, high = _round_down(low), 1 / _round_down(1 / high)
            return cls(title, low, high if high > low else 10 * low, logarithmic)
        high = high if high > low else low + (abs(low) or 1.0)
        first, second, *_ = ticks(low - (high - low), high)
        step = second - first
        return cls(title, math.floor(low / step) * step, math.ceil(high / step) * step)

    def place(self, values: Any) -> Any:
        """Returns where values lie: 0 at the beginning, 1 at the end."""
        if self.logarithmic:
            return np.log(np.asarray(values) / self.low) / math.log(self.high / self.low)
        return (np.asarray(values) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Returns value and text of each tick."""
        values = (log_ticks if self.logarithmic else ticks)(self.low, self.high)
        if self.whole:
            values = [value for value in values if value == round(value)]
        if self.logarithmic or max(map(abs, values), default=0) < 1e-2:
            return [(value, f"{value:g}") for value in values]
        decimals = max((len(f"{value:g}".partition(".")[2]) for value in values), default=0)
        return [(value, f"{value:.{decimals}f}") for value in values]


def _round_down(value: float) -> float:
    """Returns the largest of 1, 2, 5, 10, 20, ... and their fractions that is not above a value."""
    power = 10.0 ** math.floor(math.log10(value))
    return max((factor * power for factor in _ROUND if factor * power <= value), default=power)


class Chart:
    """A chart with ticks and titles, into which lines are drawn.

    Attributes:
        image: the chart as drawn so far.
    """

    def __init__(self, x: Axis, y: Axis, width: int = SIDE, height: int = SIDE, left: int = LEFT) -> None:
        """Draws the axes.

        Args:
            x: to the right.
            y: upwards.
            width: pixels between the ends of the x axis.
            height: pixels between the ends of the y axis.
            left: least pixels on the left of that, so that several charts are in line.
        """
        self._x, self._y, self._width, self._height = x, y, width, height
        widest = max((text_size(text, 0.42)[0] for _, text in y.ticks()), default=0)
        self._left = max(left, widest + 6 + _TITLE)
        self.image = paper(self._left + width + _RIGHT, GAP + height + _BELOW)
        self._draw_axes()

    def place(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Converts values to pixels of the image."""
        return self._left + self._x.place(x) * self._width, GAP + (1 - self._y.place(y)) * self._height

    def _draw_axes(self) -> None:
        canvas, bottom, right = self.image, GAP + self._height, self._left + self._width
        for value, text in self._x.ticks():
            x = round(float(self.place(value, self._y.low)[0]))
            cv2.line(canvas, (x, GAP), (x, bottom), _GRID, 1)
            write(canvas, text, (x - text_size(text, 0.42)[0] // 2, bottom + 17), 0.42, FAINT)
        for value, text in self._y.ticks():
            y = round(float(self.place(self._x.low, value)[1]))
            width, height, _ = text_size(text, 0.42)
            cv2.line(canvas, (self._left, y), (right, y), _GRID, 1)
            write(canvas, text, (self._left - width - 6, y + height // 2), 0.42, FAINT)
        if self._x.title:
            middle = self._left + (self._width - text_size(self._x.title, 0.5)[0]) // 2
            write(canvas, self._x.title, (middle, bottom + 38), 0.5, INK)
        if self._y.title:
            top = GAP + (self._height - text_size(self._y.title, 0.5)[0]) // 2
            paste(canvas, upwards(self._y.title, 0.5, INK), 0, top)

    def line(self, values: Floats, color: Color, thickness: int = 1, dots: bool = False) -> None:
        """Draws a line through points.

        Args:
            values: `[N, 2]`, x and y; points that are not finite, or not above 0 on a logarithmic axis, are left out.
            color: BGR.
            thickness: pixels.
            dots: mark each point.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = np.stack(self.place(values[:, 0], values[:, 1]), axis=1)
        pixels = pixels[np.isfinite(pixels).all(axis=1)]
        points = np.round(pixels * _SCALE).astype(np.int32)
        points = points[np.append(True, np.diff(points, axis=0).any(axis=1))[: len(points)]]
        if len(points):
            cv2.polylines(self.image, [points], False, color, thickness, cv2.LINE_AA, _SHIFT)
        for point in points.tolist() if dots else []:
            cv2.circle(self.image, point, (thickness + 1) * _SCALE, color, cv2.FILLED, cv2.LINE_AA, _SHIFT)

    def mark(self, x: float, y: float) -> None:
        """Draws a circle around a point."""
        center = tuple(round(float(side) * _SCALE) for side in self.place(x, y))
        cv2.circle(self.image, center, 6 * _SCALE, (255, 255, 255), cv2.FILLED, cv2.LINE_AA, _SHIFT)
        cv2.circle(self.image, center, 6 * _SCALE, INK, 2, cv2.LINE_AA, _SHIFT)
