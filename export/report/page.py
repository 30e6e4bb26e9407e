"""Renders `report.html`, one self-contained page, from the data of `report.json` and the images to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from export.accuracy import box_changes
from export.report import curves, scatter, summary
from export.report.derived import calibrations, class_deltas, most_changed
from export.report.formats import make_environment
from export.report.images import ShownImage
from export.report.intervals import place_bounds
from export.report.labels import place_labels

Data = Mapping[str, Any]

_LAYERS = 30
_LEAST_COST = 1e-3  # in MB and ms: the axis is logarithmic
_SMALLEST_REACH = 0.1  # of the ΔAP axis, in points, so that rounding does not fill a chart


def render_page(data: Data, images: Sequence[ShownImage]) -> str:
    """Renders the page.

    Args:
        data: content of `report.json`.
        images: images to show, in order.
    """
    deltas = class_deltas(data)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            data=data,
            summary=summary,
            images=images,
            measured=[file for file in data["files"] if file["measured"]],
            class_deltas=deltas,
            most_changed=most_changed(deltas),
            reach=max([abs(delta) for row in deltas.values() for delta in row.values()] + [_SMALLEST_REACH]),
            calibrations=calibrations(data),
            tradeoffs=_tradeoffs(data),
            curve_charts=_curve_charts(data),
            layout=scatter,
            max_layers=_LAYERS,
            box_changes=box_changes,
        )
    )


def environment() -> Environment:
    """Returns the templates' environment, which escapes every value."""
    found = make_environment(autoescape=True, finalize=_finalize)
    found.filters.update(outline=_outline, place_labels=place_labels, place_bounds=place_bounds)
    return found


def _finalize(value: Any) -> Any:
    """Rounds numbers, and replaces the control characters that no page may hold."""
    if isinstance(value, float):
        return round(value, 2)
    if hasattr(value, "__html__") or str(value).isprintable():
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def _outline(counts: Sequence[int]) -> str:
    """Draws a histogram as an SVG path, a unit wide for each bin and 1 high, on a logarithmic axis."""
    peak = math.log10(1 + max(counts, default=0)) or 1
    tops = (1 - math.log10(1 + count) / peak for count in counts)
    return "M0 1" + "".join(f"V{top:.4f}H{index + 1}" for index, top in enumerate(tops)) + "V1Z"


def _curve_charts(data: Data) -> list[tuple[str, str, str, curves.LineChart]]:
    """Lays out the curves of the reference and the files that ran: (title, unit of x, meaning of the marks, chart)."""
    models = [data["reference"], *(file["measured"] for file in data["files"] if file["measured"])]
    found = {model["name"]: model["curve"] for model in models}
    recall, f1 = curves.precision_recall(found), curves.f1_by_threshold(found, data["operating"]["threshold"])
    dots = "F1 upwards. Dots: the best F1 of each model. Dashed: the operating threshold."
    return [
        ("Precision against recall", "recall", "Precision upwards. Dots: at the operating threshold.", recall),
        ("F1 against the score threshold", "score threshold", dots, f1),
    ]


def _tradeoffs(data: Data) -> list[tuple[str, str, scatter.Scatter]]:
    """Lays out AP against size and against time, for the reference and the files that ran: (title, unit, chart)."""
    ran = [(file["name"], file["status"], file["measured"]) for file in data["files"] if file["measured"]]
    models = [(data["reference"]["name"], "reference", data["reference"]), *ran]
    found = []
    for title, unit, key, scale in (
        ("AP against size", "MB", "bytes", 1e-6),
        ("AP against time", "ms / image", "milliseconds", 1),
    ):
        drawn = [
            scatter.Model(name, status, max(of[key] * scale, _LEAST_COST), of["figures"]["AP"] * 100)
            for name, status, of in models
        ]
        found.append((title, unit, scatter.scatter(drawn)))
    return found
