"""Lays out a scatter chart of AP against a cost: axes, the Pareto front, and labels that hide nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.viz.chart import log_ticks, ticks
from runtime.viz.label_layout import Rectangle, overlap

WIDTH, HEIGHT = 340, 260
LEFT, TOP, RIGHT, BOTTOM = 38, 10, WIDTH - 12, HEIGHT - 38
FONT = 11
_LETTER, _LINE = 0.62 * FONT, 1.2 * FONT
_MARK = 5  # half the side of a point's mark
_LONGEST = 20  # letters of a label: beside a mark in the middle there must be room for it
_LEAST_SPAN = 1.0  # of the AP axis in points, so that rounding does not fill it
_LEAST_RATIO = 2.0  # of the cost axis


@dataclass(frozen=True)
class Model:
    """A model to draw.

    Attributes:
        name: of its file.
        status: its verdict, or `reference`.
        cost: what is to be small, above 0.
        ap: in percent.
    """

    name: str
    status: str
    cost: float
    ap: float


@dataclass(frozen=True)
class Point:
    """A model on the chart, in the chart's pixels.

    Attributes:
        model: what it shows.
        x: of its mark.
        y: of its mark.
        front: true if it lies on the Pareto front.
        text: of the label, shortened at the front.
        label: left and baseline of the label; None where there is no room.
        leader: where a line from the mark to the label ends; the mark itself for a label beside it.
    """

    model: Model
    x: float
    y: float
    front: bool
    text: str
    label: tuple[float, float] | None
    leader: tuple[float, float]


@dataclass(frozen=True)
class Scatter:
    """A scatter chart in pixels.

    Attributes:
        points: in drawing order.
        front: SVG path of the Pareto front; empty without one.
        x_ticks: position and value of each tick of the cost axis.
        y_ticks: likewise of the AP axis.
    """

    points: list[Point]
    front: str
    x_ticks: list[tuple[float, float]]
    y_ticks: list[tuple[float, float]]


def scatter(models: Sequence[Model]) -> Scatter:
    """Lays out at least one model: AP upwards, cost to the right on a logarithmic axis."""
    low, high = _widened(*_ends([model.ap for model in models]))
    least, most = _ends([model.cost for model in models])
    middle, ratio = math.sqrt(least * most), max(math.sqrt(most / least) * 1.15, math.sqrt(_LEAST_RATIO))
    least, most = middle / ratio, middle * ratio

    def x_of(cost: float) -> float:
        return LEFT + math.log(cost / least) / math.log(most / least) * (RIGHT - LEFT)

    def y_of(ap: float) -> float:
        return BOTTOM - (ap - low) / (high - low) * (BOTTOM - TOP)

    front = pareto_front(models)
    points = _labeled([(model, x_of(model.cost), y_of(model.ap), model in front) for model in models])
    return Scatter(
        points,
        _path([(x_of(model.cost), y_of(model.ap)) for model in front]),
        [(x_of(value), value) for value in log_ticks(least, most)],
        [(y_of(value), value) for value in ticks(low, high)],
    )


def pareto_front(models: Sequence[Model]) -> list[Model]:
    """Returns the models that did not fail and that no other such model beats in cost or AP without being worse in the other.

    They come cheapest first, so that AP rises.
    """
    found: list[Model] = []
    for model in sorted(models, key=lambda model: (model.cost, -model.ap)):
        if model.status != "failed" and (not found or model.ap > found[-1].ap):
            found.append(model)
    return found


def _labeled(marks: Sequence[tuple[Model, float, float, bool]]) -> list[Point]:
    """Puts each label beside its mark or, where that is taken, above or below with a line to it."""
    taken: list[Rectangle] = [(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for _, x, y, _ in marks]
    found = []
    for model, x, y, front in sorted(marks, key=lambda mark: (not mark[3], mark[2])):
        text = model.name if len(model.name) <= _LONGEST else "…" + model.name[1 - _LONGEST :]
        spot = _free_spot(x, y, len(text) * _LETTER, taken, beside=not front)
        if spot is None:
            found.append(Point(model, x, y, front, text, None, (x, y)))
            continue
        taken.append(spot)
        left, top, right, bottom = spot
        leader = (x, y) if top < y < bottom else (left if left > x else right, (top + bottom) / 2)
        found.append(Point(model, x, y, front, text, (left, bottom - 0.3 * FONT), leader))
    return found


def _free_spot(x: float, y: float, width: float, taken: Sequence[Rectangle], beside: bool) -> Rectangle | None:
    """Finds room for a label; the place right beside its mark only if `beside`, since the front runs there."""
    rows = int((BOTTOM - TOP) / _LINE)
    for row in sorted(range(-rows, rows + 1), key=abs):
        sides = (x + _MARK + 4, x - _MARK - 4 - width)
        for left in sides if row or beside else sides[1:]:
            top = y - _LINE / 2 + row * _LINE
            spot = (left, top, left + width, top + _LINE)
            inside = left >= LEFT and spot[2] <= WIDTH and top >= 0 and spot[3] <= BOTTOM
            if inside and not any(overlap(spot, other) for other in taken):
                return spot
    return None


def _path(corners: Sequence[tuple[float, float]]) -> str:
    """Draws the best AP that a cost allows, up to the right edge."""
    if not corners:
        return ""
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in corners[1:])
    return f"M{corners[0][0]:.1f} {corners[0][1]:.1f}{steps}H{RIGHT}"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = max((high - low) * 0.1, (_LEAST_SPAN - (high - low)) / 2)
    return low - margin, high + margin
