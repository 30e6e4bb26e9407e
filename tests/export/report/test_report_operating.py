"""Tests what the report says of the operating threshold and of speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from export.accuracy.gate import Verification
from export.report import write_report
from tests.support.report_pages import (
    table_rows,
    words,
)


def test_the_json_and_the_page_give_the_change_at_the_operating_threshold(page: Path) -> None:
    report = json.loads((page.parent / "report.json").read_text())
    assert report["operating"] == {"threshold": 0.25, "stored": False}
    good, bad, worse, _ = report["files"]
    assert (good["speedup"], bad["speedup"]) == (None, {"ratio": 0.8, "low": 0.7, "high": 1.25})
    assert bad["operating"]["changes"]["vanished"]["upper"] == pytest.approx(33.333)
    assert bad["operating"]["changes"]["reclassified"]["estimate"] is None  # NaN
    assert worse["operating"] is None
    assert table_rows(page, "Changes at the operating threshold") == [
        ["good.onnx", "none", "none", "–", "0.00 (−1.00, +1.00)", "1"],
        ["bad.onnx", "33.3 (0.0, 100.0)", "none", "–", "0.00 (−1.00, +1.00)", "0.80 (0.70, 1.25), not faster"],
    ]
    said = words(page)
    assert "each with 95 % confidence" in said
    assert "On this machine, bad.onnx is not faster than FP32." in said
    assert "It is 0.25 here (the default of detection; the weights store none)" in said


def test_the_page_says_where_f1_is_best_and_by_how_much_that_moved(page: Path) -> None:
    report = json.loads((page.parent / "report.json").read_text())
    curves = [report["reference"]["curve"], *(file["measured"]["curve"] for file in report["files"][:2])]
    assert [curve["best_f1"]["threshold"] for curve in curves] == [0.3998, 0.3998, 0.1999]
    assert table_rows(page, "Where F1 is best") == [
        ["PyTorch", "66.67", "100.00", "80.00", "80.00", "0.400", "–", "–"],
        ["good.onnx", "66.67", "100.00", "80.00", "80.00", "0.400", "0.000", "–"],
        ["bad.onnx", "50.00", "50.00", "50.00", "80.00", "0.200", "−0.200", "–"],
    ]


def test_stored_thresholds_are_given_with_where_they_come_from(found: Verification, tmp_path: Path) -> None:
    spec = found.outcomes[1].spec
    assert spec is not None
    own = replace(found.outcomes[1], spec=spec.replace(operating_threshold=0.15))
    outcomes = (found.outcomes[0], own, *found.outcomes[2:])
    page = write_report(tmp_path, replace(found, spec=found.spec.replace(operating_threshold=0.375), outcomes=outcomes))
    assert [row[-1] for row in table_rows(page, "Where F1 is best")] == ["0.375", "–", "0.15"]
    said = words(page)
    assert "It is 0.375 here (stored in the weights; training stores the one of best F1" in said
    assert "Detections from the operating threshold of 0.375 on" in said
