"""Labels the boxes drawn over an image so that no label hides another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.accuracy.box_changes import KEPT, RESCORED, Box
from export.report.images import LABELED
from runtime.viz.label_layout import Rectangle, free_spot

_LETTER = 0.62  # width of a letter, in its height
_LINE = 1.15  # height of a line of text, in that of its letters


@dataclass(frozen=True)
class LabeledBox:
    """A box with its label.

    Attributes:
        box: what to draw.
        text: class, and score of a detection.
        corner: (left, bottom) of the label in pixels of the image; None where there is no room for it.
    """

    box: Box
    text: str
    corner: tuple[float, float] | None


def place_labels(
    boxes: Sequence[Box], class_names: Mapping[int, str], size: tuple[int, int], height: float
) -> list[LabeledBox]:
    """Puts each label above its box, below it or in it, where it hides no other label.

    Args:
        boxes: boxes of one image.
        class_names: by category id.
        size: (width, height) of the image in pixels.
        height: of a label in pixels.

    Returns:
        The boxes in drawing order: labeled objects first, the changed boxes and the best ones last, on top. Those on top choose
        their place first.
    """
    taken: list[Rectangle] = []
    found = []
    for box in sorted(boxes, key=lambda box: (box.kind == LABELED, box.kind == KEPT, -box.score)):
        text = f"{class_names[box.category_id]}{_score(box)}"
        left, top, width, box_height = box.box
        corners = (left, top, left + width, top + box_height)
        spot = free_spot(corners, len(text) * height * _LETTER, height * _LINE, size, taken)
        taken += [spot] if spot else []
        found.append(LabeledBox(box, text, (spot[0], spot[3]) if spot else None))
    return found[::-1]


def _score(box: Box) -> str:
    if box.kind == LABELED:
        return ""
    return f" {box.before:.2f} → {box.score:.2f}" if box.kind == RESCORED else f" {box.score:.2f}"
