"""Budgets: one rule for calibration and the gate, and what the command line takes."""

from __future__ import annotations

import argparse

import pytest

from calibration.budget import BUDGETS, ap_points, is_within
from calibration.request import Request
from calibration.sensitivity import smallest_set
from runtime.spec import PRECISIONS

EXACTLY = (0.4 - 0.395) * 100  # in floats 0.5 and a little


def test_every_precision_has_a_budget_and_int8_is_calibrated_to_its_own() -> None:
    assert set(BUDGETS) == set(PRECISIONS)
    assert Request.max_ap_drop == BUDGETS["int8"]


@pytest.mark.parametrize(
    ("drop", "budget", "expected"),
    [
        (0.0, 0.0, True),
        (-3.0, 0.0, True),  # a gain
        (EXACTLY, 0.5, True),
        (0.501, 0.5, False),
        (1e-6, 0.0, False),
        (float("nan"), 100, False),
    ],
)
def test_a_loss_of_exactly_the_budget_is_within_it(drop: float, budget: float, expected: bool) -> None:
    assert is_within(drop, budget) is expected


def test_the_search_for_layers_judges_by_the_same_rule() -> None:
    assert EXACTLY > 0.5
    assert smallest_set(["a", "b"], lambda layers: EXACTLY if "a" in layers else 9.0, 0.5) == {"a"}


def test_points_of_ap() -> None:
    assert [ap_points(text) for text in ("0", "0.5", "100")] == [0, 0.5, 100]
    for text in ("-1", "101", "nan"):
        with pytest.raises(argparse.ArgumentTypeError):
            ap_points(text)
