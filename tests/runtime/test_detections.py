"""Detections: validation, selection, conversion."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from runtime.detections import Detections
from runtime.errors import MissingComponentError


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


BOXES = np.array([[0, 0, 4, 3], [1, 1, 2, 2.5], [5, 5, 5, 5]], np.float32)
SCORES = f32(0.9, 0.5, 0)
CLASSES = np.array([0, 2, 1], np.int64)


@pytest.mark.parametrize(
    ("boxes", "scores", "class_ids", "message"),
    [
        # empty, but of a wrong shape
        (np.empty((0,), np.float32), f32(), np.empty(0, np.int64), "boxes: expected float32 [0, 4], got float32 [0]"),
        (np.empty((0, 5), np.float32), f32(), np.empty(0, np.int64), "boxes: expected float32 [0, 4]"),
        # dtypes
        (BOXES.astype(np.float64), SCORES, CLASSES, "boxes: expected float32 [3, 4], got float64 [3, 4]"),
        (BOXES, SCORES.astype(np.float16), CLASSES, "scores: expected float32 [3]"),
        (BOXES, SCORES, CLASSES.astype(np.int32), "class_ids: expected int64 [3]"),
        # lengths
        (BOXES, SCORES[:2], CLASSES, "scores: expected float32 [3], got float32 [2]"),
        (BOXES, SCORES, CLASSES[:2], "class_ids: expected int64 [3]"),
        (BOXES, SCORES[:, None], CLASSES, "scores: expected float32 [3]"),
        # values
        (BOXES[:, [2, 1, 0, 3]], SCORES, CLASSES, "boxes: expected finite"),
        (BOXES[:, [0, 3, 2, 1]], SCORES, CLASSES, "boxes: expected finite"),
        (BOXES * np.float32("nan"), SCORES, CLASSES, "boxes: expected finite"),
        (BOXES + np.float32("inf"), SCORES, CLASSES, "boxes: expected finite"),
        (BOXES, SCORES + np.float32(0.2), CLASSES, "scores: expected values in"),
        (BOXES, -SCORES, CLASSES, "scores: expected values in"),
        (BOXES, SCORES * np.float32("nan"), CLASSES, "scores: expected values in"),
        (BOXES, SCORES, CLASSES - 1, "class_ids: expected values >= 0"),
    ],
)
def test_validation(boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below, brackets and all
        Detections(boxes, scores, class_ids)
    assert message in str(error.value)


def test_empty() -> None:
    for nothing in (Detections.empty(), Detections.from_arrays([], [], []), Detections.from_arrays((), (), ())):
        assert len(nothing) == 0
        assert nothing.boxes.shape == (0, 4)
        assert nothing.to_dicts([]) == []


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (np.array([], np.int64), []),
        (slice(0, 0), []),
        (slice(None), [0, 1, 2]),
        (slice(1, None), [1, 2]),
        (np.array([False, False, False]), []),
        (np.array([True, False, True]), [0, 2]),
        (np.array([2, 0]), [2, 0]),
    ],
)
def test_indexing(index: object, kept: list[int]) -> None:
    chosen = Detections(BOXES, SCORES, CLASSES)[index]
    np.testing.assert_array_equal(chosen.boxes, BOXES[kept])
    np.testing.assert_array_equal(chosen.scores, SCORES[kept])
    np.testing.assert_array_equal(chosen.class_ids, CLASSES[kept])


def test_to_dicts_is_plain_json() -> None:
    found = Detections.from_arrays([[1.005, 2, 30.333333, 40]], [0.987654321], [1])
    expected = [{"box": [1.0, 2.0, 30.33, 40.0], "score": 0.98765, "class_id": 1, "class_name": "ring"}]
    assert json.loads(json.dumps(found.to_dicts(("dot", "ring")))) == expected


@pytest.mark.parametrize(
    ("class_ids", "names"),
    [
        ([], []),
        ([1], ["ring"]),
        ([0, 2, 0], ["dot", "環", "dot"]),
    ],
)
def test_to_supervision(class_ids: list[int], names: list[str]) -> None:
    sv = pytest.importorskip("supervision")
    boxes = [[i, 2, 30.25, 40 + i] for i in range(len(class_ids))]
    found = Detections.from_arrays(boxes, [0.5] * len(boxes), class_ids)
    converted = found.to_supervision(("dot", "ring", "環"))
    assert isinstance(converted, sv.Detections) and len(converted) == len(found)
    assert converted.xyxy is found.boxes and converted.confidence is found.scores and converted.class_id is found.class_ids
    assert converted["class_name"].tolist() == names
    one_more = sv.Detections.merge([converted, Detections.from_arrays([[0, 0, 1, 1]], [1], [1]).to_supervision(["", "ring"])])
    assert one_more["class_name"].tolist() == [*names, "ring"]
    image = np.zeros((64, 64, 3), np.uint8)
    assert sv.LabelAnnotator().annotate(sv.BoxAnnotator().annotate(image, one_more), one_more).any()


def test_supervision_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)  # type: ignore[arg-type]
    with pytest.raises(MissingComponentError, match=r"pip install 'yolov3-asff-tensorrt\[supervision\]'"):
        Detections.empty().to_supervision([])
