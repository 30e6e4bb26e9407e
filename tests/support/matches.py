"""Matches of detections with objects, for tests that make an evaluation up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.evaluation.matching import AREAS, IOU_THRESHOLDS, ClassMatches, Matches


def no_matches() -> Matches:
    """Returns the matches of a set without classes."""
    return Matches((), (), dict.fromkeys(AREAS, ()))


def make_matches(scores: Sequence[float], right: Sequence[bool], objects: int) -> Matches:
    """Returns the matches of one class in one image.

    Args:
        scores: of the detections, highest first.
        right: which of them match an object, at every IoU threshold.
        objects: number of objects to be found.
    """
    matched = np.tile(np.array(right, np.bool_), (IOU_THRESHOLDS, 1))
    index = np.zeros(len(scores), np.int32)
    item = ClassMatches(index, np.array(scores, np.float64), matched, np.zeros_like(matched), np.array([objects], np.int32))
    return Matches((1,), ("cat",), dict.fromkeys(AREAS, (item,)))
