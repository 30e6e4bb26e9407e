"""Matches of detections with objects, for tests that make an evaluation up."""

from __future__ import annotations

from runtime.evaluation.matching import AREAS, Matches


def no_matches() -> Matches:
    """Returns the matches of a set without classes."""
    return Matches((), (), dict.fromkeys(AREAS, ()))
