"""Box conversions, IoU against a scalar reference, clipping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.ops import boxes as box_ops

CORNER = st.integers(-40, 40)
BOX = st.tuples(CORNER, CORNER, CORNER, CORNER).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
BOXES = st.lists(BOX, max_size=6).map(lambda rows: np.array(rows, np.float32).reshape(-1, 4))


def slow_iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = width * height if width > 0 and height > 0 else 0
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)) - common
    return common / union if union else 0


@given(BOXES)
def test_conversions_invert_each_other(boxes: np.ndarray) -> None:
    there = box_ops.xyxy_to_cxcywh(boxes)
    assert there.dtype == np.float32
    np.testing.assert_array_equal(box_ops.cxcywh_to_xyxy(there), boxes)  # small integers: exact
    corner = box_ops.xyxy_to_xywh(boxes)
    np.testing.assert_array_equal(np.concatenate([corner[:, :2], corner[:, :2] + corner[:, 2:]], 1), boxes)


@pytest.mark.parametrize(
    ("xyxy", "cxcywh", "xywh"),
    [
        (np.empty((0, 4)), np.empty((0, 4)), np.empty((0, 4))),
        ([[0, 0, 0, 0]], [[0, 0, 0, 0]], [[0, 0, 0, 0]]),
        ([[1, 2, 5, 10]], [[3, 6, 4, 8]], [[1, 2, 4, 8]]),
        ([[-3, -1, 2, 2]], [[-0.5, 0.5, 5, 3]], [[-3, -1, 5, 3]]),
    ],
)
def test_conversion_table(xyxy: object, cxcywh: object, xywh: object) -> None:
    boxes = np.asarray(xyxy, np.float32)
    np.testing.assert_array_equal(box_ops.xyxy_to_cxcywh(boxes), np.asarray(cxcywh))
    np.testing.assert_array_equal(box_ops.xyxy_to_xywh(boxes), np.asarray(xywh))


@given(BOXES, BOXES)
def test_iou_equals_the_scalar_reference(first: np.ndarray, second: np.ndarray) -> None:
    ratios = box_ops.iou(first, second)
    assert ratios.shape == (len(first), len(second)) and ratios.dtype == np.float32
    expected = [[slow_iou(a, b) for b in second.tolist()] for a in first.tolist()]
    np.testing.assert_allclose(ratios, np.array(expected, np.float32).reshape(ratios.shape), rtol=2e-7, atol=0)
    np.testing.assert_array_equal(ratios, box_ops.iou(second, first).T)


def test_iou_does_not_depend_on_the_scale() -> None:
    pair = np.array([[0, 0, 4, 4], [0, 0, 4, 1]], np.float32)
    for scale in (2.0**-20, 1, 2.0**30):
        assert box_ops.iou(pair * np.float32(scale), pair * np.float32(scale)).tolist() == [[1, 0.25], [0.25, 1]]


def test_iou_of_inverted_boxes_is_nothing() -> None:
    inverted = np.array([[5, 5, 1, 1]], np.float32)
    assert box_ops.area(inverted).tolist() == [0]
    assert box_ops.iou(inverted, np.array([[0, 0, 9, 9]], np.float32)).tolist() == [[0]]


@given(BOXES, st.integers(1, 30), st.integers(1, 30))
def test_clip_stays_inside_and_keeps_what_is_inside(boxes: np.ndarray, width: int, height: int) -> None:
    clipped = box_ops.clip(boxes, width, height)
    assert clipped.dtype == np.float32
    assert (clipped >= 0).all() and (clipped <= [width, height, width, height]).all()
    np.testing.assert_array_equal(box_ops.clip(clipped, width, height), clipped)
    inside = (boxes >= 0).all(1) & (boxes <= [width, height, width, height]).all(1)
    np.testing.assert_array_equal(clipped[inside], boxes[inside])
    whole = np.array([[0, 0, width, height]], np.float32)
    overlap = box_ops.iou(boxes, whole)[:, 0] > 0
    np.testing.assert_array_equal(box_ops.area(clipped) > 0, overlap)
