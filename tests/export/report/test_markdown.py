"""Tests the Markdown: a comment for a pull request and the model card, in which no name is markup."""

from __future__ import annotations

import re
from typing import Any

import pytest

from calibration.budget import FAILED, PASSED, UNDECIDED
from export.report.markdown import escape, render_card, render_comment

NASTY = "a|b`c`\n# <script>x</script> [l](u) @all _e_ \x07"


CURVE = {"at_threshold": {"f1": 0.8}, "best_f1": {"f1": 0.85, "threshold": 0.32}}


def file(name: str, status: str = PASSED, **changes: Any) -> dict[str, Any]:
    bounds = {"estimate": -0.2, "standard_error": 0.1, "lower": -0.4, "upper": 0.0, "confidence": 0.95}
    change = dict.fromkeys(("vanished", "appeared", "reclassified", "f1"), bounds)
    criteria = [{"name": "AP", "status": status, "budget": 0.5, "bounds": bounds, "reason": ""}]
    measured = {
        "figures": {"AP": 0.5, "AP50": 0.7},
        "per_class": {"cat": 0.5, NASTY: 0.4, "unseen": -1.0},
        "milliseconds": 3.0,
        "change": -0.2,
        "worst_class": {"name": NASTY, "change": -0.3},
        "curve": CURVE,
    }
    found = {
        "name": name,
        "file": f"/x/{name}",
        "sha256": "a" * 64,
        "bytes": 2_000_000,
        "precision": "int8",
        "budget": 0.5,
        "status": status,
        "reasons": [],
        "notes": [],
        "criteria": criteria,
        "operating": {"threshold": 0.3, "detections": 100, "changes": change},
        "speedup": None,
        "foreign": False,
        "made_with": [NASTY],
        "manifest": None,
        "measured": measured,
    }
    return found | changes


def report(*files: dict[str, Any], status: str = PASSED, **limits: Any) -> dict[str, Any]:
    spec = {"class_names": ["cat", NASTY, "unseen"], "head": "yolo", "strides": [32], "color": "rgb", "resize": "letterbox"}
    spec |= {"pad_value": 114.0, "mean": [0.5] * 3, "std": [0.2] * 3, "score_threshold": 0.01, "nms_threshold": 0.6}
    figures = {"AP": 0.5, "AP50": 0.7, "APs": -1.0, "APm": 0.5, "APl": 0.5}
    return {
        "status": status,
        "model": NASTY,
        "input_size": [64, 96],
        "spec": spec,
        "training": None,
        "files": list(files),
        "data": {"root": "/d", "split": "val", "images": 100, "skipped": ["3.png: empty"], "sha256": "b" * 64},
        "weights": {"file": "w.pt", "sha256": "c" * 64},
        "limits": {"confidence": 0.95, "accept_undecided": False, "allow_foreign": False} | limits,
        "operating": {"threshold": 0.3, "stored": True},
        "versions": {"machine": "Linux"},
        "reference": {
            "name": "PyTorch",
            "figures": figures,
            "per_class": {"cat": 0.5, NASTY: 0.4, "unseen": -1.0},
            "bytes": 2_000_000,
            "milliseconds": 9.0,
            "curve": CURVE,
        },
    }


NOT_RUN = file("m.engine", "built, not run", criteria=[], measured=None, operating=None, reasons=["no GPU"])


def test_the_comment_gives_each_verdict_with_its_bounds_and_reasons() -> None:
    text = render_comment(report(file("a.onnx"), file("b.onnx", FAILED, reasons=["lost -3 points"]), NOT_RUN, status=FAILED))
    assert text.startswith("### ✗ failed: ")
    assert "b.onnx must not be used. m.engine was built, not measured." in text
    assert "| a.onnx | ✓ passed | −0.200 (−0.400, 0.000) | 0.5 | 50.00 |" in text
    assert "- **b.onnx**: lost −3 points\n- **m.engine**: built, not measured: no GPU\n" in text
    assert text.count("<details>") == text.count("</details>") == 4
    assert "95 % confidence" in text


def speed(ratio: float, low: float, high: float) -> dict[str, float]:
    return {"ratio": ratio, "low": low, "high": high}


@pytest.mark.parametrize("render", [render_comment, render_card])
@pytest.mark.parametrize(
    ("ratios", "cells", "sentence"),
    [
        ([], [], ""),
        ([(1.5, 1.2, 1.8)], ["1.50 (1.20, 1.80), faster"], ""),
        ([(1.1, 0.9, 1.3)], ["1.10 (0.90, 1.30), faster in the median"], ""),
        ([(1.0, 0.9, 1.1)], ["1.00 (0.90, 1.10), not faster"], "On this machine, 0.onnx is not faster than FP32."),
        (
            [(0.5, 0.4, 0.6), (0.6, 0.5, 0.7), (2.0, 1.9, 2.1)],
            ["0.50 (0.40, 0.60), not faster", "0.60 (0.50, 0.70), not faster", "2.00 (1.90, 2.10), faster"],
            "On this machine, 0.onnx and 1.onnx are not faster than FP32.",
        ),
    ],
)
def test_the_speed_is_given_and_a_file_that_is_not_faster_named(
    ratios: list[tuple[float, float, float]], cells: list[str], sentence: str, render: Any
) -> None:
    fp32 = file("m.onnx", precision="fp32")
    others = [file(f"{index}.onnx", speedup=speed(*given)) for index, given in enumerate(ratios)]
    text = render(report(fp32, *others))
    (row,) = [line for line in text.splitlines() if line.startswith("| m.onnx | ✓ passed") and "3.0" in line]
    assert row.endswith("| 3.0 | 1 |" if ratios else "| 3.0 |  |")
    assert [cell in text for cell in cells] == [True] * len(cells)
    assert (sentence in text) and ("not faster" in text) == bool(sentence)
    assert ("Speed is relative to the FP32 file" in text) == bool(ratios)


@pytest.mark.parametrize("render", [render_comment, render_card])
def test_the_changes_at_the_operating_threshold_are_given(render: Any) -> None:
    text = render(report(file("a.onnx"), NOT_RUN))
    assert "It is 0.3 here (stored in the weights;" in text
    assert "| PyTorch |  |  |  |  | 80.00 | 85.00 | 0.320 |" in text
    shares = "0.2 (0.0, 0.4) | " * 3
    assert f"| a.onnx | {shares}−0.20 (−0.40, 0.00) | 80.00 | 85.00 | 0.320 |" in text
    assert "At the operating threshold" not in render(report(NOT_RUN))


@pytest.mark.parametrize("accepted", [False, True])
def test_an_undecided_file_says_what_would_decide_it_unless_it_was_accepted(accepted: bool) -> None:
    given = report(file("a.onnx", UNDECIDED), status=UNDECIDED, accept_undecided=accepted)
    text = render_comment(given)
    assert text.startswith("### ? undecided, accepted" if accepted else "### ? undecided:")
    assert ("--accept-undecided" in text) != accepted


@pytest.mark.parametrize("render", [render_comment, render_card])
def test_tables_hold_together_and_no_name_is_markup(render: Any) -> None:
    text = render(report(file(NASTY, notes=[NASTY]), NOT_RUN))
    assert "<script>" not in text.replace(r"\<script\>", "") and "@all" not in text and "\x07" not in text
    assert "\n# <" not in text
    tables = [block for block in re.split(r"\n\n", text) if block.startswith("|")]
    assert len(tables) >= 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_the_card_says_what_was_not_tested() -> None:
    text = render_card(report(file("a.onnx"), NOT_RUN))
    assert "classes without an object in the split: unseen" in text
    assert "small objects: the split has none" in text and "medium objects" not in text
    assert "built, not measured: m.engine" in text
    assert "1 images of the split that could not be read" in text
    assert "do not record how they were trained" in text
    assert "| a.onnx | ✓ passed | AP | −0.200 (−0.400, 0.000) | 0.5 | 50.00 | 3.0 |  |" in text


def test_the_card_says_how_the_model_was_trained_and_calibrated() -> None:
    calibration = {"images": [{}, {}], "split": "train", "method": "minmax"}
    source = {"role": "onnx", "name": "m.onnx", "sha256": "d" * 64}
    training = {"recipe": "demo", "train_split": "train", "val_split": "val", "epochs": 9, "epochs_completed": 8}
    training |= {"size": 160, "batch": 8, "optimizer": "sgd", "seed": 0, "best_ap": 0.5}
    manifest = {"precision": "int8", "made_from": [source], "details": {"calibration": calibration}}
    text = render_card(report(file("a.onnx", manifest=manifest)) | {"training": training})
    assert "Recipe demo, 8 of 9 epochs" in text and "the best AP in training was 50.00\n" in text
    assert "from onnx m.onnx (dddddddddddd…); calibrated on 2 images of train by minmax; made with" in text


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("model.fp16_v2-1.onnx", "model.fp16_v2-1.onnx"),
        ("a|b\nc", r"a\|b c"),
        ("_x_ *y*", r"\_x\_ \*y\*"),
        ("<b>&", r"\<b\>\&"),
        ("@me", "@\N{WORD JOINER}me"),
        (0.30000001, "0.3"),
    ],
)
def test_values_are_escaped(value: object, escaped: str) -> None:
    assert escape(value) == escaped
