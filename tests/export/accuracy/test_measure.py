"""Measurements: their table, the worst class, and the judgment by a budget."""

from __future__ import annotations

import pytest

from export.accuracy.gate import judge
from export.accuracy.measure import Measurement, table, worst_class
from runtime.evaluation.coco import METRICS, Evaluation
from tests.support.matches import no_matches


def measurement(ap: float, per_class: dict[str, float] | None = None, name: str = "model") -> Measurement:
    metrics = dict.fromkeys(METRICS, 0.0) | {"AP": ap}
    return Measurement(name, Evaluation(metrics, per_class or {}, 1, (), [], no_matches()), 2_000_000, 3.0)


def test_exactly_the_budget_is_allowed_and_no_more() -> None:
    reference, budgets = measurement(0.4), {"int8": 0.5}
    assert judge(reference, measurement(0.395), "int8", budgets) == []  # in floats 0.5 and a little
    assert judge(reference, measurement(0.3949), "int8", budgets) == ["lost 0.510 points of AP, the budget of int8 is 0.5"]
    assert judge(reference, measurement(0.5), "int8", {"int8": 0}) == []


def test_the_worst_class_is_the_one_that_lost_most_among_those_with_objects() -> None:
    reference = measurement(0.5, {"cat": 0.9, "dog": 0.2, "bird": -1})
    name, delta = worst_class(reference, measurement(0.5, {"cat": 0.8, "dog": 0.15, "bird": -1})) or ("", 0.0)
    assert (name, delta) == ("cat", pytest.approx(-10))
    assert worst_class(reference, measurement(0.6, {"cat": 0.95, "dog": 0.2, "bird": -1})) is None
    assert worst_class(measurement(0.5, {"bird": -1}), measurement(0.5, {"bird": -1})) is None


def test_the_table_names_every_metric() -> None:
    lines = table([measurement(0.5, {"cat": 0.5}, "PyTorch"), measurement(0.4975, {"cat": 0.4975}, "a.onnx")]).splitlines()
    assert " ".join(lines[0].split()) == "model AP AP50 AP75 small medium large ΔAP worst class size ms/image max diff"
    assert lines[2].split() == ["a.onnx", "49.75", *["0.00"] * 5, "-0.250", "cat", "-0.25", "2.00", "MB", "3.0", "-"]
