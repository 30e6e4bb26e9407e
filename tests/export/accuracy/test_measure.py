"""Measurements: their table, and the worst class."""

from __future__ import annotations

import pytest

from export.accuracy.measure import Measurement, table, worst_class
from runtime.evaluation.bootstrap import Bounds
from runtime.evaluation.coco import METRICS, Evaluation
from tests.support.matches import no_matches


def measurement(ap: float, per_class: dict[str, float] | None = None, name: str = "model") -> Measurement:
    metrics = dict.fromkeys(METRICS, 0.0) | {"AP": ap}
    return Measurement(name, Evaluation(metrics, per_class or {}, 1, (), [], no_matches()), 2_000_000, 3.0)


def test_the_worst_class_is_the_one_that_lost_most_among_those_with_objects() -> None:
    reference = measurement(0.5, {"cat": 0.9, "dog": 0.2, "bird": -1})
    name, delta = worst_class(reference, measurement(0.5, {"cat": 0.8, "dog": 0.15, "bird": -1})) or ("", 0.0)
    assert (name, delta) == ("cat", pytest.approx(-10))
    assert worst_class(reference, measurement(0.6, {"cat": 0.95, "dog": 0.2, "bird": -1})) is None
    assert worst_class(measurement(0.5, {"bird": -1}), measurement(0.5, {"bird": -1})) is None


def test_the_table_names_every_metric() -> None:
    reference, other = measurement(0.5, {"cat": 0.5}, "PyTorch"), measurement(0.4975, {"cat": 0.4975}, "a.onnx")
    lines = table([reference, other], {"a.onnx": Bounds(-0.25, 0.1, -0.4145, -0.0855, 0.95)}).splitlines()
    heading = "model AP AP50 AP75 small medium large ΔAP lower, upper worst class size ms/image max diff"
    assert " ".join(lines[0].split()) == heading
    measured = ["49.75", *["0.00"] * 5, "-0.250", "-0.414,", "-0.086", "cat", "-0.25", "2.00", "MB", "3.0", "-"]
    assert lines[2].split() == ["a.onnx", *measured]
