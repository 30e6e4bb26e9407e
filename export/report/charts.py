"""The page's charts as inline SVG. Colors come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.report.markup import tag, text

_WIDTH = 460.0
_ROW = 30.0
_CLASS_WIDTH, _CLASS_ROW = 340.0, 22.0
_LABEL_CHARACTERS = 7.2  # width of one at the charts' font size, generously


@dataclass(frozen=True)
class Bar:
    """One row of a chart.

    Attributes:
        label: of the row. value: its length, in the chart's unit. note: what is written at its end.
        kind: `plain`, `reference`, `good` or `bad`; chooses the color.
    """

    label: str
    value: float
    note: str
    kind: str = "plain"


def bars(
    title: str, rows: Sequence[Bar], *, axis: str, limit: float | None = None, limit_label: str = "", width: float = _WIDTH
) -> str:
    """Bars from zero, each with its figure at the end, and at `limit` a dashed line that says what it is."""
    left = _label_width(rows, width)
    right = max((len(row.note) for row in rows), default=0) * _LABEL_CHARACTERS + 12
    top = 26 if limit is not None else 6
    longest = max([row.value for row in rows] + [limit or 0]) or 1
    scale = max(width - left - right, 60) / longest
    parts = []
    for index, row in enumerate(rows):
        y = top + index * _ROW
        length = max(row.value, 0) * scale
        parts += [
            _label(row.label, left - 8, y),
            tag("rect", x=left, y=y + 6.0, width=max(length, 1.5), height=_ROW - 12, rx=2, class_=f"bar {row.kind}"),
            tag("text", text(row.note), x=left + length + 6, y=y + _ROW / 2, class_="figure"),
        ]
    bottom = top + len(rows) * _ROW
    parts.append(tag("line", x1=left, x2=left, y1=top, y2=bottom, class_="axis"))
    parts.append(tag("text", text(axis), x=left, y=bottom + 14, class_="unit"))
    if limit is not None:
        x = left + limit * scale
        parts.append(tag("line", x1=x, x2=x, y1=top - 4, y2=bottom, class_="limit"))
        parts.append(tag("text", text(limit_label), x=x, y=12, class_="limit-label"))
    return _chart(title, parts, bottom + 26, width)


def diverging(title: str, rows: Sequence[Bar], reach: float, *, axis: str) -> str:
    """Losses to the left of zero, gains to the right, at most `reach` either way, each with its figure."""
    left = _label_width(rows, _CLASS_WIDTH)
    room = 60.0  # for the figure beyond a bar
    middle, scale = left + (_CLASS_WIDTH - left) / 2, ((_CLASS_WIDTH - left) / 2 - room) / (reach or 1)
    height = _CLASS_ROW
    parts = []
    for index, row in enumerate(rows):
        y, length = index * height, abs(row.value) * scale
        start = middle - length if row.value < 0 else middle
        end, anchor = (start - 5, "end") if row.value < 0 else (start + length + 5, "start")
        parts += [
            _label(row.label, left - 8, y, height),
            tag("rect", x=start, y=y + 4, width=max(length, 1.0), height=height - 8, rx=2, class_=f"bar {row.kind}"),
            tag("text", text(row.note), x=end, y=y + height / 2, class_="figure", text_anchor=anchor),
        ]
    bottom = len(rows) * height
    parts.append(tag("line", x1=middle, x2=middle, y1=0, y2=bottom, class_="axis"))
    parts.append(tag("text", text(axis), x=middle, y=bottom + 14, class_="unit", text_anchor="middle"))
    return _chart(title, parts, bottom + 26, _CLASS_WIDTH)


def histogram(title: str, drawn: Mapping[str, Any]) -> str:
    """A layer's calibration histogram: counts on a logarithmic axis, and where values are cut off.

    Args:
        drawn: `edges` [low, high], `counts`, and perhaps `threshold`.
    """
    (low, high), counts = drawn["edges"], drawn["counts"]
    width, height, top = 720.0, 200.0, 24.0
    peak = math.log10(1 + max(counts, default=0)) or 1
    step = width / max(len(counts), 1)
    path = [f"M0 {top + height:.1f}"]
    for index, count in enumerate(counts):
        y = top + height * (1 - math.log10(1 + count) / peak)
        path.append(f"L{index * step:.1f} {y:.1f}L{(index + 1) * step:.1f} {y:.1f}")
    path.append(f"L{width:.1f} {top + height:.1f}Z")
    parts = [
        tag("path", d="".join(path), class_="bar plain"),
        tag("line", x1=0, x2=width, y1=top + height, y2=top + height, class_="axis"),
        tag("text", text(f"{low:.4g}"), x=0, y=top + height + 14, class_="unit"),
        tag("text", text(f"{high:.4g}"), x=width, y=top + height + 14, class_="unit", text_anchor="end"),
        tag(
            "text", "value of the activation; counts on a logarithmic axis", x=width / 2, y=top + height + 14, class_="unit mid"
        ),
    ]
    threshold = drawn.get("threshold")
    for cut in {threshold, -threshold} if threshold is not None else ():
        if low <= cut <= high and high > low:
            x = (cut - low) / (high - low) * width
            parts.append(tag("line", x1=x, x2=x, y1=top - 4, y2=top + height, class_="limit"))
            place = "end" if x > width * 0.8 else "start" if x < width * 0.2 else None
            parts.append(tag("text", text(f"cut at {cut:.4g}"), x=x, y=12, class_="limit-label", text_anchor=place))
    return _chart(title, parts, top + height + 26, width)


def _label_width(rows: Sequence[Bar], width: float) -> float:
    return min(max((len(row.label) for row in rows), default=0) * _LABEL_CHARACTERS + 14, width * 0.42)


def _label(label: str, x: float, y: float, height: float = _ROW) -> str:
    """Right-aligned at `x`; a long one keeps its end, which tells layers apart, and shows whole when pointed at."""
    room = int((x - 2) / _LABEL_CHARACTERS)
    shown = label if len(label) <= room else "…" + label[-(room - 1) :]
    return tag("text", tag("title", text(label)), text(shown), x=x, y=y + height / 2, class_="name", text_anchor="end")


def _chart(title: str, parts: Sequence[str], height: float, width: float) -> str:
    inner = tag("title", text(title))
    size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "style": f"max-width: {width * 1.2:.0f}px"}
    return tag("svg", inner, *parts, class_="chart", role="img", aria_label=title, **size)
