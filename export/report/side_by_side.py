"""The same pictures through every step, the boxes that changed marked by colour and dashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from export.changes import APPEARED, KEPT, MIN_IOU, MIN_SCORE_CHANGE, RESCORED, SHOWN_SCORE, VANISHED, Box
from export.report.markup import tag, text
from export.report.pictures import Shown

_LEGEND = {
    KEPT: "unchanged",
    RESCORED: f"score moved by more than {MIN_SCORE_CHANGE:g}",
    APPEARED: "appeared",
    VANISHED: "vanished",
}
_MANY = 10
"""Boxes in a picture beyond which only those that changed carry a label."""


def side_by_side(figures: Mapping[str, Any], pictures: Sequence[Shown]) -> tuple[str, ...]:
    """A lead, and the markup of the section."""
    if not pictures:
        return ("No picture could be read.",)
    lead = (
        f"Detections of at least {SHOWN_SCORE:g}, matched with PyTorch's by class and IoU of at least {MIN_IOU:g}."
        " Pictures with most changes first."
    )
    totals = [_totals(file) for file in figures["files"] if file["measured"]]
    rows = [_row(number, picture) for number, picture in enumerate(pictures)]
    return lead, tag("ul", *totals), _legend(), _sources(pictures), *rows


def _totals(file: Mapping[str, Any]) -> str:
    counts = file["measured"]["changed_detections"]
    said = f"{counts[KEPT]} unchanged, {counts[RESCORED]} rescored, {counts[APPEARED]} appeared, {counts[VANISHED]} vanished"
    return tag("li", tag("strong", text(file["name"])), ": ", text(said), " in all pictures")


def _legend() -> str:
    items = []
    for kind, meaning in _LEGEND.items():
        place = {"x": 3, "y": 3, "width": 24, "height": 14}
        sample = tag(
            "svg", tag("rect", **place, class_="under"), tag("rect", **place, class_=f"box {kind}"), aria_hidden="true"
        )
        items.append(tag("li", sample, text(meaning)))
    hide = tag("label", tag("input", type="checkbox", data_toggles="only-changed"), " only what changed", hidden="hidden")
    return tag("ul", *items, tag("li", hide), class_="controls")


def _sources(pictures: Sequence[Shown]) -> str:
    """Each picture once; the steps refer to it."""
    images = [
        tag(
            "image",
            id=f"picture-{number}",
            width=picture.width,
            height=picture.height,
            href=picture.uri,
            preserveAspectRatio="none",
        )
        for number, picture in enumerate(pictures)
    ]
    return tag("svg", tag("defs", *images), width=0, height=0, style="position:absolute", aria_hidden="true")


def _row(number: int, picture: Shown) -> str:
    least = 260 if picture.width >= picture.height else 190
    columns = f"grid-template-columns: repeat(auto-fill, minmax(min(100%, {least}px), 1fr))"
    figures = [_figure(number, picture, name, boxes) for name, boxes in picture.boxes.items()]
    return tag("h3", text(picture.name)) + tag("div", *figures, class_="pictures", style=columns)


def _figure(number: int, picture: Shown, step: str, boxes: Sequence[Box]) -> str:
    changed = sum(box.kind != KEPT for box in boxes)
    # The best and the changed on top of the rest.
    ordered = sorted(boxes, key=lambda box: (box.kind != KEPT, box.score))
    labelled = len(boxes) <= _MANY
    marks = [_mark(box, picture, labelled or box.kind != KEPT) for box in ordered]
    said = f"{step}: {len(boxes)} boxes" + (f", {changed} changed" if changed else "")
    drawing = tag(
        "svg",
        tag("use", href=f"#picture-{number}"),
        *marks,
        viewBox=f"0 0 {picture.width} {picture.height}",
        role="img",
        aria_label=f"{picture.name}, {said}",
    )
    return tag("figure", drawing, tag("figcaption", text(said)))


def _mark(box: Box, picture: Shown, labelled: bool) -> str:
    left, top, width, height = box.box
    name = picture.class_names[box.category_id]
    size = max(picture.width, picture.height) / 30
    place: dict[str, object] = {"x": left, "y": top, "width": width, "height": height}
    parts = [
        tag("title", text(f"{name} {_score(box)}, {_LEGEND[box.kind]}")),
        tag("rect", **place, class_="under"),
        tag("rect", **place, class_=f"box {box.kind}"),
    ]
    if labelled:
        label, y = text(f"{name} {_score(box)}"), top - size * 0.35 if top > size * 1.3 else top + size
        # Kept inside the picture: anchored at the box's right edge where it stands in the right half.
        near_right = left > picture.width / 2
        x, anchor = (left + width, "end") if near_right else (left, None)
        parts.append(tag("text", label, x=x, y=y, font_size=size, text_anchor=anchor, class_=f"tag {box.kind}"))
    return tag("g", *parts, class_=box.kind)


def _score(box: Box) -> str:
    if box.before is None or box.kind in (KEPT, VANISHED):
        return f"{box.score:.2f}"
    return f"{box.before:.2f} → {box.score:.2f}"
