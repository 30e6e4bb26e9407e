"""nms: block-wise against plain greedy NMS in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.ops.nms import nms
from tests.support.pairs import zip_equal

UNLIMITED = 10**9
SIDE = st.integers(0, 6)
BOX = st.tuples(st.integers(0, 8), st.integers(0, 8), SIDE, SIDE)  # left, top, width, height; areas of 0 among them
ITEM = st.tuples(BOX, st.integers(0, 4), st.integers(0, 2))
ITEMS = st.lists(ITEM, max_size=30)
THRESHOLD = st.sampled_from(["0.1", "0.3", "0.5", "0.6", "1"])

Item = tuple[tuple[int, int, int, int], int, int]


def iou(first: tuple[int, ...], second: tuple[int, ...]) -> Fraction:
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    union = first[2] * first[3] + second[2] * second[3] - common
    return Fraction(common, union) if union else Fraction(0)


def slow_nms(items: list[Item], threshold: str, limit: int) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(items)), key=lambda i: -items[i][1]):  # a stable sort: ties keep their order
        box, _, label = items[i]
        if all(items[k][2] != label or iou(items[k][0], box) <= Fraction(threshold) for k in kept):
            kept.append(i)
    return kept[:limit]


def arrays(items: list[Item]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes = np.array([(x, y, x + w, y + h) for (x, y, w, h), _, _ in items], np.float32).reshape(-1, 4)
    scores = np.array([score / 4 for _, score, _ in items], np.float32)
    return boxes, scores, np.array([label for _, _, label in items], np.int64)


@settings(max_examples=300)
@given(ITEMS, THRESHOLD, st.integers(1, 6) | st.just(UNLIMITED))
def test_equals_the_greedy_reference(items: list[Item], threshold: str, limit: int) -> None:
    kept = nms(*arrays(items), float(threshold), limit)
    assert kept.dtype == np.int64
    assert kept.tolist() == slow_nms(items, threshold, limit)


@given(ITEMS, THRESHOLD)
def test_what_survives_survives_again(items: list[Item], threshold: str) -> None:
    boxes, scores, class_ids = arrays(items)
    kept = nms(boxes, scores, class_ids, float(threshold), UNLIMITED)
    again = nms(boxes[kept], scores[kept], class_ids[kept], float(threshold), UNLIMITED)
    assert again.tolist() == list(range(len(kept)))


@pytest.mark.parametrize("limit", [1, 100, 300, UNLIMITED])
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 512, 900])
def test_more_than_a_block(count: int, limit: int) -> None:
    rng = np.random.default_rng(count)
    corners, sides = rng.integers(0, 150, (count, 2)), rng.integers(0, 40, (count, 2))
    boxes = np.concatenate([corners, sides], 1).tolist()
    items = list(zip_equal(map(tuple, boxes), rng.integers(0, 40, count).tolist(), rng.integers(0, 3, count).tolist()))
    kept = nms(*arrays(items), 0.3, limit).tolist()
    assert kept == slow_nms(items, "0.3", limit)
    if count == 900 and limit == UNLIMITED:
        assert 256 < len(kept) < count  # suppression across blocks took place


def test_ties_across_blocks_keep_their_order() -> None:
    boxes = np.array([[0, 0, 9, 9]] * 600, np.float32) + 20 * np.arange(600, dtype=np.float32)[:, None]
    boxes[300] = boxes[10]
    kept = nms(boxes, np.full(600, 0.5, np.float32), np.zeros(600, np.int64), 0.6, UNLIMITED)
    assert kept.tolist() == [i for i in range(600) if i != 300]


def test_classes_never_suppress_each_other() -> None:
    boxes = np.array([[0, 0, 9, 9]] * 600, np.float32)
    scores = np.linspace(1, 0.1, 600, dtype=np.float32)
    assert nms(boxes, scores, np.arange(600), 0.1, UNLIMITED).tolist() == list(range(600))
    assert nms(boxes, scores, np.arange(600) % 5, 0.1, UNLIMITED).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("width", "kept"), [(6, [0, 1]), (7, [0])])
def test_an_overlap_of_exactly_the_threshold_stays(width: int, kept: list[int]) -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, width, 10]], np.float32)  # IoU width / 10
    assert nms(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), 0.6, 10).tolist() == kept


def test_zero_area_boxes_are_never_suppressed() -> None:
    boxes = np.array([[3, 3, 3, 3]] * 3, np.float32)
    assert nms(boxes, np.array([0.1, 0.3, 0.2], np.float32), np.zeros(3, np.int64), 0.1, 10).tolist() == [1, 2, 0]
