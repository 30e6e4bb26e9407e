"""Boxes and labels on a copy of the image, at any place and size."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.detections import Detections
from runtime.viz.annotate import class_color, draw

NAMES = ("dot", "a class with a long name")


def gray(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 60, np.uint8)


def near(pixel: np.ndarray, color: tuple[int, int, int]) -> bool:
    """Lines are antialiased: a little of what is below shines through."""
    return bool(np.abs(pixel.astype(int) - color).max() <= 20)


def test_nothing_to_draw_gives_an_equal_copy() -> None:
    image = gray(40, 30)
    drawn = draw(image, Detections.empty(), [])
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((300, 200), (50, 80, 150, 160)),
        # exactly the image, and at each border
        ((300, 200), (0, 0, 300, 200)),
        ((60, 40), (0, 0, 60, 40)),
        ((60, 40), (20.4, 15.6, 60, 40)),
        ((1000, 800), (500, 500, 1000, 800)),
    ],
)
def test_every_edge_has_the_class_color(size: tuple[int, int], box: tuple[float, ...]) -> None:
    image = gray(*size)
    drawn = draw(image, Detections.from_arrays([box], [0.9], [0]), ("",))
    np.testing.assert_array_equal(image, gray(*size))  # the input is left alone
    left, top, right, bottom = (round(value) for value in box)
    right, bottom = min(right, size[0] - 1), min(bottom, size[1] - 1)
    # well away from the label, which starts at the left upper corner
    middle, low = (left + 3 * right) // 4, (top + 3 * bottom) // 4
    for x, y in ((left, low), (right, low), (middle, bottom)):
        assert near(drawn[y, x], class_color(0)), (x, y)
    inside = drawn[(bottom * 3 + top) // 4, (left + right) // 2]
    assert inside.tolist() == [60, 60, 60]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 2), (8, 5)])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 0.2, 0.2), (0, 0, 50, 50), (0, 0, 0, 0)])
def test_tiny_images(size: tuple[int, int], box: tuple[float, ...]) -> None:
    drawn = draw(gray(*size), Detections.from_arrays([box] * 2, [0.9, 0.8], [1, 0]), NAMES)
    assert drawn.shape == (size[1], size[0], 3) and drawn.dtype == np.uint8
    assert (drawn != 60).any()


@pytest.mark.parametrize("corner", [(0, 0), (0, 199), (300, 0), (300, 199)])
def test_the_label_is_inside_the_image(corner: tuple[int, int]) -> None:
    def changed(left: int, top: int) -> int:
        found = Detections.from_arrays([(left, top, left, top)], [0.9], [0])
        return int((draw(gray(300, 200), found, ("a long label",)) != 60).any(2).sum())

    # Cut off nowhere: as many pixels as in the middle, apart from a column and the few of the box itself.
    assert changed(140, 100) > 600
    assert abs(changed(*corner) - changed(140, 100)) <= 30


def test_the_best_is_on_top() -> None:
    boxes = [(20, 50, 100, 90)] * 2
    drawn = draw(gray(120, 120), Detections.from_arrays(boxes, [0.9, 0.4], [1, 0]), ("", ""))
    assert near(drawn[70, 20], class_color(1))


def test_colors_of_neighboring_classes_differ() -> None:
    colors = np.array([class_color(k) for k in range(80)])
    assert ((colors >= 0) & (colors <= 255)).all()
    assert len(np.unique(colors, axis=0)) == 80
    assert np.abs(np.diff(colors, axis=0)).sum(1).min() > 100
    assert class_color(5) == class_color(5)


@pytest.mark.parametrize("other", [(60, 20, 200, 190), (40, 30, 90, 60), (0, 0, 299, 199), (55, 47, 61, 53)])
def test_no_box_crosses_a_label(other: tuple[float, ...]) -> None:
    """Whichever of two detections is the better one."""
    box = (50, 60, 150, 160)
    alone = draw(gray(300, 200), Detections.from_arrays([box], [0.9], [0]), NAMES)
    label = np.zeros(alone.shape[:2], bool)
    label[54:58, 52:76] = True  # well inside the label, which stands on the box
    assert (alone[label] != 60).any(axis=-1).all()
    for boxes, classes in (([box, other], [0, 1]), ([other, box], [1, 0])):
        both = draw(gray(300, 200), Detections.from_arrays(boxes, [0.9, 0.9], classes), (NAMES[0], ""))
        np.testing.assert_array_equal(both[label], alone[label])
