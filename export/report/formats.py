"""Formats numbers for people, with real minus signs; the filters that the page and the Markdown templates share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_MINUS = re.compile(r"(?<![\w.)\]-])-(?=\.?\d)")


def number(value: float, form: str) -> str:
    """Formats a number by a format specification such as `.2f`, with a real minus sign and no sign at a rounded zero."""
    text = format(value, form)
    return (text if re.search("[1-9]", text) else text.lstrip("+-")).replace("-", "−")


def minus(text: str) -> str:
    """Gives the numbers in a text real minus signs; hyphens in names stay."""
    return _MINUS.sub("−", text)


def percent(value: float) -> str:
    """Formats an AP in [0, 1] as percent; a dash where the split has no such object."""
    return f"{value * 100:.2f}" if value >= 0 else "–"


def points(value: float, digits: int = 2) -> str:
    """Formats a ΔAP in points, with its sign."""
    return number(value, f"+.{digits}f")


def megabytes(size: int) -> str:
    """Formats a size in bytes as MB, without the unit."""
    return f"{size / 1e6:.2f}"


def bounded(bounds: Mapping[str, float]) -> str:
    """Formats ΔAP in points with its bounds: `−0.270 (−0.450, −0.090)`."""
    return f"{points(bounds['estimate'], 3)} ({points(bounds['lower'], 3)}, {points(bounds['upper'], 3)})"


FORMATS: dict[str, Callable[..., Any]] = {
    "number": number,
    "minus": minus,
    "percent": percent,
    "points": points,
    "megabytes": megabytes,
    "bounded": bounded,
}
