"""Labels of crowded images: inside, and none over another."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.viz.label_layout import Rectangle, free_spot, overlap

SIZE = (300, 200)
sides = st.integers(0, 80)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), st.integers(-20, SIZE[0]), st.integers(-20, SIZE[1]), sides, sides)


@settings(max_examples=200)
@given(st.lists(st.tuples(boxes, st.integers(1, 90), st.integers(1, 30)), max_size=30))
def test_labels_are_inside_and_disjoint(labels: list[tuple[Rectangle, int, int]]) -> None:
    taken: list[Rectangle] = []
    for box, width, height in labels:
        spot = free_spot(box, width, height, SIZE, taken)
        if spot is not None:
            left, top, right, bottom = spot
            assert (right - left, bottom - top) == (width, height)
            assert left >= 0 and top >= 0 and right <= SIZE[0] and bottom <= SIZE[1]
            taken.append(spot)
    assert not any(overlap(one, other) for one, other in combinations(taken, 2))


def test_places_are_tried_in_order() -> None:
    """Boxes of one place: above, below, inside, then from the right edge; the first is taken where it is free."""
    box: Rectangle = (100, 50, 200, 150)
    taken: list[Rectangle] = []
    while True:
        spot = free_spot(box, 40, 10, SIZE, taken)
        if spot is None:
            break
        taken.append(spot)
    corners = [(x, y) for x, y, _, _ in taken]
    assert corners == [(100, 40), (100, 150), (100, 50), (160, 40), (160, 150), (160, 50), (100, 140), (160, 140)]


def test_a_label_larger_than_the_image_starts_at_its_corner() -> None:
    assert free_spot((5, 5, 9, 9), 400, 20, (50, 10), []) == (0, 0, 400, 20)
