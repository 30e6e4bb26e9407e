"""Detections matched with those of the reference: known cases, and what must hold for any."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.accuracy.box_changes import by_image, match_detections


def record(left: float, score: float, category: int = 1, width: float = 10, image: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [left, 0.0, width, 10.0], "score": score}


@pytest.mark.parametrize(
    ("reference", "other", "kinds"),
    [
        ([], [], []),
        ([record(0, 0.9)], [], ["vanished"]),
        ([], [record(0, 0.9)], ["appeared"]),
        ([record(0, 0.9)], [record(0, 0.9)], ["kept"]),
        ([record(0, 0.9)], [record(0, 0.86)], ["kept"]),
        ([record(0, 0.9)], [record(0, 0.84)], ["rescored"]),
        ([record(0, 0.8)], [record(0, 0.9)], ["rescored"]),
        ([record(0, 0.9)], [record(0, 0.9, category=2)], ["vanished", "appeared"]),
        ([record(0, 0.9)], [record(0, 0.9, width=5)], ["kept"]),  # an IoU of exactly 0.5
        ([record(0, 0.9)], [record(0, 0.9, width=4.9)], ["vanished", "appeared"]),
        # The second overlaps the first reference best, so the better reference takes it and the other is left with the rest.
        ([record(0, 0.9), record(2, 0.8)], [record(1, 0.9)], ["kept", "vanished"]),
        ([record(0, 0.9)], [record(3, 0.9), record(1, 0.9)], ["kept", "appeared"]),
    ],
)
def test_known_cases(reference: list[dict[str, Any]], other: list[dict[str, Any]], kinds: list[str]) -> None:
    assert [box.kind for box in match_detections(reference, other)] == kinds


def test_boxes_and_scores_are_those_after_the_change_and_before_it() -> None:
    rescored, vanished, appeared = match_detections(
        [record(0, 0.9), record(50, 0.5)],
        [record(1, 0.7), record(90, 0.4)],
    )
    assert (rescored.box[0], rescored.before, rescored.score) == (1, 0.9, 0.7)
    assert (vanished.box[0], vanished.before, vanished.score) == (50, 0.5, 0.5)
    assert (appeared.box[0], appeared.before, appeared.score) == (90, None, 0.4)


def test_only_what_is_worth_looking_at_is_compared_best_first() -> None:
    found = by_image([record(0, 0.3), record(0, 0.24), record(0, 0.9), record(0, 0.25, image=7)], 0.25)
    assert {image: [item["score"] for item in items] for image, items in found.items()} == {0: [0.9, 0.3], 7: [0.25]}


records = st.lists(
    st.builds(record, st.floats(0, 30), st.floats(0.25, 1), st.integers(1, 2), st.floats(1, 20)), max_size=6
).map(lambda items: sorted(items, key=lambda item: -item["score"]))


@given(records, records)
def test_every_box_is_counted_once_and_nothing_changes_against_itself(
    reference: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    counts = Counter(box.kind for box in match_detections(reference, other))
    assert counts["kept"] + counts["rescored"] + counts["vanished"] == len(reference)
    assert counts["kept"] + counts["rescored"] + counts["appeared"] == len(other)
    assert all(box.kind == "kept" for box in match_detections(reference, reference))
