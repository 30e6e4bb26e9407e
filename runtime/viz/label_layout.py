"""Places the labels of boxes so that none hides another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

Rectangle = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""


def free_spot(
    box: Rectangle, width: float, height: float, image_size: tuple[int, int], taken: Sequence[Rectangle]
) -> Optional[Rectangle]:
    """Finds room for a label above its box, below it or inside it; None where every place is taken.

    Args:
        box: the labeled box.
        width: of the label in pixels.
        height: of the label in pixels.
        image_size: (width, height) of the image in pixels; the label lies inside unless it is larger than the image.
        taken: labels placed before, which it must not overlap.

    Example:
        >>> free_spot((10, 30, 60, 80), 40, 12, (100, 100), taken=[(10, 18, 50, 30)])
        (10, 80, 50, 92)
    """
    left, top, right, bottom = box
    most_x, most_y = max(image_size[0] - width, 0), max(image_size[1] - height, 0)
    for x, y in (
        (left, top - height),
        (left, bottom),
        (left, top),
        (right - width, top - height),
        (right - width, bottom),
        (right - width, top),
        (left, bottom - height),
        (right - width, bottom - height),
    ):
        x, y = max(min(x, most_x), 0), max(min(y, most_y), 0)
        spot = (x, y, x + width, y + height)
        if not any(overlap(spot, other) for other in taken):
            return spot
    return None


def overlap(one: Rectangle, other: Rectangle) -> bool:
    """True if two rectangles share more than an edge."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
