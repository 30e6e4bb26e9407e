"""Formats numbers for people, with real minus signs; the filters that the page and the Markdown templates share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Optional

from jinja2 import Environment, PackageLoader, StrictUndefined

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


def bounded(bounds: Mapping[str, float], digits: int = 3) -> str:
    """Formats a change in points with its bounds: `−0.270 (−0.450, −0.090)`."""
    return _with_bounds(*(points(bounds[key], digits) for key in ("estimate", "lower", "upper")))


def share(bounds: Mapping[str, Optional[float]]) -> str:
    """Formats a share of detections, negative in `report.json`, as percent with its bounds: `1.7 (0.7, 2.7)`.

    It is `none` without such a detection, since resampling then knows no bounds, and a dash where there are no detections.
    """
    found = [-value for value in (bounds[key] for key in ("estimate", "upper", "lower")) if value is not None]
    if not found:
        return "–"
    return _with_bounds(*(number(max(value, 0.0), ".1f") for value in found)) if found[0] else "none"


def ratio(speedup: Mapping[str, float]) -> str:
    """Formats a speed with its bounds: `1.42 (1.30, 1.55)`."""
    return _with_bounds(*(f"{speedup[key]:.2f}" for key in ("ratio", "low", "high")))


def decimal(value: Optional[float], form: str = ".3f") -> str:
    """Formats a threshold or a difference of two; a dash where there is none."""
    return "–" if value is None else number(value, form)


def _with_bounds(value: str, lower: str, upper: str) -> str:
    return f"{value} ({lower}, {upper})"


FORMATS: dict[str, Callable[..., Any]] = {
    "number": number,
    "minus": minus,
    "percent": percent,
    "points": points,
    "megabytes": megabytes,
    "bounded": bounded,
    "share": share,
    "ratio": ratio,
    "decimal": decimal,
}


def make_environment(*, autoescape: bool, finalize: Callable[[Any], Any]) -> Environment:
    """Creates the environment of the templates, in which a value that is missing is an error, with `FORMATS` as filters.

    Args:
        autoescape: whether values are escaped as HTML.
        finalize: is applied to each value that a template writes.
    """
    found = Environment(
        loader=PackageLoader("export.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(FORMATS)
    return found
