"""The same images through every step, the boxes that changed marked by color and dashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from export.accuracy.box_changes import APPEARED, KEPT, MIN_IOU, MIN_SCORE_CHANGE, RESCORED, SHOWN_SCORE, VANISHED, Box
from export.report.images import Shown
from export.report.markup import tag, text

_LEGEND = {
    KEPT: "unchanged",
    RESCORED: f"score moved by more than {MIN_SCORE_CHANGE:g}",
    APPEARED: "appeared",
    VANISHED: "vanished",
}
_LETTER = 0.62  # width of a letter of a label, in its height


def side_by_side(figures: Mapping[str, Any], images: Sequence[Shown]) -> tuple[str, ...]:
    """A lead, and the markup of the section."""
    if not images:
        return ("No image could be read.",)
    lead = (
        f"Detections of at least {SHOWN_SCORE:g}, matched with PyTorch's by class and IoU of at least {MIN_IOU:g}."
        " Images with most changes first."
    )
    totals = [_totals(file) for file in figures["files"] if file["measured"]]
    rows = [_row(number, image) for number, image in enumerate(images)]
    return lead, tag("ul", *totals), _legend(), _sources(images), *rows


def _totals(file: Mapping[str, Any]) -> str:
    counts = file["measured"]["changed_detections"]
    said = f"{counts[KEPT]} unchanged, {counts[RESCORED]} rescored, {counts[APPEARED]} appeared, {counts[VANISHED]} vanished"
    return tag("li", tag("strong", text(file["name"])), ": ", text(said), " in all images")


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


def _sources(images: Sequence[Shown]) -> str:
    """Each image once; the steps refer to it."""
    elements = [
        tag(
            "image",
            id=f"image-{number}",
            width=image.width,
            height=image.height,
            href=image.uri,
            preserveAspectRatio="none",
        )
        for number, image in enumerate(images)
    ]
    return tag("svg", tag("defs", *elements), width=0, height=0, style="position:absolute", aria_hidden="true")


def _row(number: int, image: Shown) -> str:
    least = 260 if image.width >= image.height else 190
    columns = f"grid-template-columns: repeat(auto-fill, minmax(min(100%, {least}px), 1fr))"
    figures = [_figure(number, image, name, boxes) for name, boxes in image.boxes.items()]
    return tag("h3", text(image.name)) + tag("div", *figures, class_="images", style=columns)


def _figure(number: int, image: Shown, step: str, boxes: Sequence[Box]) -> str:
    # The best and the changed on top of the rest.
    ordered = sorted(boxes, key=lambda box: (box.kind != KEPT, box.score))
    said = _said(step, boxes)
    drawing = tag(
        "svg",
        tag("use", href=f"#image-{number}"),
        *(_outline(box, image) for box in ordered),
        *_labels(ordered[::-1], image),
        viewBox=f"0 0 {image.width} {image.height}",
        role="img",
        aria_label=f"{image.name}, {said}",
    )
    return tag("figure", drawing, tag("figcaption", text(said)))


def _said(step: str, boxes: Sequence[Box]) -> str:
    counts = Counter(box.kind for box in boxes)
    here = len(boxes) - counts[VANISHED]
    changes = [f"{counts[kind]} {kind}" for kind in (RESCORED, APPEARED, VANISHED) if counts[kind]]
    return f"{step}: {here} {'box' if here == 1 else 'boxes'}" + (f" ({', '.join(changes)})" if changes else "")


def _outline(box: Box, image: Shown) -> str:
    left, top, width, height = box.box
    place: dict[str, object] = {"x": left, "y": top, "width": width, "height": height}
    return tag(
        "g",
        tag("title", text(f"{_label(box, image)}, {_LEGEND[box.kind]}")),
        tag("rect", **place, class_="under"),
        tag("rect", **place, class_=f"box {box.kind}"),
        class_=box.kind,
    )


def _labels(boxes: Sequence[Box], image: Shown) -> list[str]:
    """Labels where they hide no other: above a box, below or in it; one without room shows its label when pointed at."""
    size = max(image.width, image.height) / 32
    taken: list[tuple[float, float, float, float]] = []
    found = []
    for box in boxes:
        label = _label(box, image)
        left, top, _, height = box.box
        width = len(label) * size * _LETTER
        x = max(min(left, image.width - width), 0)
        spots = [(x, y, x + width, y + size) for y in (top - size * 1.15, top + height + size * 0.15, top + size * 0.15)]
        inside = (spot for spot in spots if spot[1] >= 0 and spot[3] <= image.height)
        free = [spot for spot in inside if not any(_touch(spot, other) for other in taken)]
        if free:
            taken.append(free[0])
            found.append(tag("text", text(label), x=free[0][0], y=free[0][3], font_size=size, class_=f"tag {box.kind}"))
    return found


def _touch(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _label(box: Box, image: Shown) -> str:
    score = f"{box.score:.2f}"
    if box.kind == RESCORED:
        score = f"{box.before:.2f} → {score}"
    return f"{image.class_names[box.category_id]} {score}"
