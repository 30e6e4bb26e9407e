"""Budgets: one rule for calibration and the gate, and what the command line takes."""

from __future__ import annotations

import argparse

import pytest

from calibration.budget import BUDGETS, FAILED, PASSED, UNDECIDED, ap_points, images_to_decide, judge
from calibration.request import Request
from runtime.evaluation.bootstrap import Bounds
from runtime.spec import PRECISIONS

EXACTLY = (0.4 - 0.395) * 100  # in floats 0.5 and a little


def test_every_precision_has_a_budget_and_int8_is_calibrated_to_its_own() -> None:
    assert set(BUDGETS) == set(PRECISIONS)
    assert Request.max_ap_drop == BUDGETS["int8"]


def bounds(lower: float, estimate: float, upper: float, error: float = 0.1) -> Bounds:
    return Bounds(estimate, error, lower, upper, 0.95)


@pytest.mark.parametrize(
    ("lower", "upper", "budget", "verdict"),
    [
        (0.0, 0.0, 0.0, PASSED),  # nothing changed, nothing may be lost
        (-0.4, 0.3, 0.5, PASSED),
        (-EXACTLY, 0.3, 0.5, PASSED),
        (-0.6, 0.3, 0.5, UNDECIDED),
        (-0.6, -0.4, 0.5, UNDECIDED),
        (-0.6, -EXACTLY, 0.5, UNDECIDED),
        (-0.9, -0.6, 0.5, FAILED),
        (-0.1, 0.1, 0.0, UNDECIDED),
        (-0.1, -1e-6, 0.0, FAILED),
    ],
)
def test_the_verdict_rests_on_the_bounds(lower: float, upper: float, budget: float, verdict: str) -> None:
    assert judge(bounds(lower, (lower + upper) / 2, upper), budget) == verdict


@pytest.mark.parametrize(
    ("estimate", "error", "budget", "images", "expected"),
    [
        (-0.2, 0.3, 0.5, 100, 620),  # (1.645 + 0.842)^2 * 100
        (-0.8, 0.3, 0.5, 100, 620),
        (-0.2, 0.03, 0.5, 100, 110),  # more than there are, since they did not decide
        (-0.5, 0.3, 0.5, 100, None),
        (-0.499, 0.3, 0.5, 100, None),
        (-0.425, 0.3, 0.5, 100, 9900),
        (-0.427, 0.3, 0.5, 100, None),  # more than a hundred times as many
    ],
)
def test_the_images_that_would_decide(estimate: float, error: float, budget: float, images: int, expected: int | None) -> None:
    assert images_to_decide(bounds(-1, estimate, 1, error), budget, images) == expected


def test_points_of_ap() -> None:
    assert [ap_points(text) for text in ("0", "0.5", "100")] == [0, 0.5, 100]
    for text in ("-1", "101", "nan"):
        with pytest.raises(argparse.ArgumentTypeError):
            ap_points(text)
