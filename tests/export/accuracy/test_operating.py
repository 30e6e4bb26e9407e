"""Changes at the operating point: counted by hand, and judged by limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.budget import FAILED, PASSED, UNDECIDED
from export.accuracy.limits import Limits
from export.accuracy.operating import compare_operating
from export.accuracy.verdict import assess_operating
from runtime.evaluation.coco import METRICS, Evaluation
from runtime.evaluation.matching import ClassMatches, Matches

IMAGES = 40
LEFT, RIGHT = [10.0, 10.0, 20.0, 20.0], [60.0, 10.0, 20.0, 20.0]


def found(image: int, box: list[float], score: float = 0.9, category: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def evaluation(results: list[dict[str, Any]]) -> Evaluation:
    """An evaluation on images that hold one object each, at `LEFT`."""
    index = np.array([item["image_id"] for item in results], np.int32)
    right = np.array([item["bbox"] == LEFT and item["category_id"] == 1 for item in results], bool)
    scores = np.array([item["score"] for item in results])
    matched, ignored = np.tile(right, (10, 1)), np.zeros((10, len(results)), bool)
    classes = (ClassMatches(index, scores, matched, ignored, np.ones(IMAGES, np.int32)),)
    matches = Matches(tuple(range(IMAGES)), ("cat",), {"all": classes})
    return Evaluation(dict.fromkeys(METRICS, 0.5), {"cat": 0.5}, IMAGES, (), results, matches)


BEFORE = [found(image, LEFT) for image in range(IMAGES)]


@pytest.mark.parametrize(
    ("after", "vanished", "appeared", "reclassified"),
    [
        (BEFORE, 0, 0, 0),
        (BEFORE[4:], 4, 0, 0),
        ([*BEFORE[:-1], found(39, LEFT, 0.2)], 1, 0, 0),  # its score fell below the threshold
        ([*BEFORE, found(0, RIGHT), found(1, RIGHT, 0.2)], 0, 1, 0),
        ([*BEFORE[2:], found(0, LEFT, category=2), found(1, RIGHT, category=2)], 1, 1, 1),
        ([], 40, 0, 0),
    ],
)
def test_what_changed(after: list[dict[str, Any]], vanished: int, appeared: int, reclassified: int) -> None:
    change = compare_operating(evaluation(BEFORE), evaluation(after), 0.3, 0.95)
    assert change.detections == IMAGES
    shares = {name: -change.changes[name].estimate * IMAGES / 100 for name in ("vanished", "appeared", "reclassified")}
    assert shares == pytest.approx({"vanished": vanished, "appeared": appeared, "reclassified": reclassified})
    kept = [item for item in after if item["score"] >= 0.3]
    right = sum(item["bbox"] == LEFT and item["category_id"] == 1 for item in kept)
    f1 = 200 * right / (len(kept) + IMAGES)
    assert change.changes["f1"].estimate == pytest.approx(f1 - 100)
    binomial = 100 * np.sqrt(vanished / IMAGES * (1 - vanished / IMAGES) / IMAGES)
    assert change.changes["vanished"].standard_error == pytest.approx(binomial, rel=0.15)


@pytest.mark.parametrize(("limit", "status"), [(50.0, PASSED), (12.0, UNDECIDED), (1.0, FAILED)])
def test_a_limit_is_judged_by_its_bounds(limit: float, status: str) -> None:
    change = compare_operating(evaluation(BEFORE), evaluation(BEFORE[4:]), 0.3, 0.95)
    (criterion,) = assess_operating(change, IMAGES, Limits(operating={"vanished": limit}))
    assert criterion.status == status
    assert bool(criterion.reason) == (status != PASSED)


def test_without_detections_there_is_no_share() -> None:
    change = compare_operating(evaluation([]), evaluation([]), 0.3, 0.95)
    (criterion,) = assess_operating(change, IMAGES, Limits(operating={"appeared": 1.0}))
    assert (criterion.status, criterion.bounds) == (UNDECIDED, None)
    assert "PyTorch detects nothing at the threshold 0.3" in criterion.reason
