"""Budgets and limits as the command line names them."""

from __future__ import annotations

import argparse

import pytest

from calibration.budget import BUDGETS
from export.accuracy import limits
from export.accuracy.limits import Budgets, Limits, check_classes, parse_budgets, read_limits, to_arguments
from runtime.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", Budgets({"fp32": 0.5, "fp16": 0.5, "int8": 0.5})),
        ("int8=1", Budgets({**BUDGETS, "int8": 1})),
        ("fp32=0, fp16=2", Budgets({**BUDGETS, "fp32": 0, "fp16": 2})),
        ("person=0.2,traffic light=3", Budgets(by_class={"person": 0.2, "traffic light": 3})),
        ("small=1,each-class=2", Budgets(by_size={"small": 1}, each_class=2)),
        ("a=b=1", Budgets(by_class={"a=b": 1})),
    ],
)
def test_budgets(text: str, expected: Budgets) -> None:
    assert parse_budgets(text) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "nan", "fp32", "fp32=", "fp32=nan", "cat=-1", "101", "=1", "cat=1,cat=2", "a=1,"]
)
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_budgets(text)


def test_a_class_that_the_model_lacks_is_named() -> None:
    check_classes(parse_budgets("dog=1"), ("cat", "dog"))
    with pytest.raises(InputError, match=r"fp8=.*\(fp32, fp16, int8, small, medium, large, each-class, cat, dog\)"):
        check_classes(parse_budgets("fp8=1"), ("cat", "dog"))


@pytest.mark.parametrize(
    "expected",
    [
        Limits(),
        Limits(
            budgets=Budgets({**BUDGETS, "int8": 0.1 + 0.2}, {"a b": 1.0}, {"large": 2.0}, 3.0),
            confidence=0.9,
            accept_undecided=True,
            allow_foreign=True,
            operating={"vanished": 1.5, "f1": 0.5},
            require_speedup=1.2,
        ),
    ],
)
def test_arguments_and_limits_are_inverse(expected: Limits) -> None:
    parser = argparse.ArgumentParser()
    limits.add_arguments(parser)
    assert read_limits(parser.parse_args(to_arguments(expected))) == expected
