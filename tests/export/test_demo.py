"""The whole road at its smallest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from export import demo
from export.steps import Step
from runtime.detector import Detector
from runtime.errors import CheckFailed
from runtime.evaluation import FIGURES, Evaluation
from runtime.images import read_image

ROOT = Path(__file__).parents[2]


def step(name: str, ap: float, ap50: float) -> Step:
    figures = dict.fromkeys(FIGURES, 0.0) | {"AP": ap, "AP50": ap50}
    return Step(name, Evaluation(figures, {}, 1, (), []), 2_000_000, 3.0)


def test_the_demo_walks_the_whole_road(tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path), "--train", "16", "--val", "4", "--epochs", "1", "--min-ap50", "0"]
    result = subprocess.run(
        [sys.executable, "-m", "export.demo", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "PyTorch" in result.stdout
    assert "ONNX FP32" in result.stdout
    steps = json.loads((tmp_path / "steps.json").read_text())
    assert [entry["step"] for entry in steps] == ["PyTorch", "ONNX FP32"]
    assert steps[0]["figures"]["AP"] == pytest.approx(steps[1]["figures"]["AP"], abs=5e-4)
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    sheet = read_image(tmp_path / "detections.jpg")
    assert sheet.std() > 10  # a picture, not a blank
    with Detector(tmp_path / "model.onnx") as detector:
        assert detector.spec.class_names == ("circle", "square", "star", "triangle")


def test_a_model_that_did_not_learn_is_refused() -> None:
    demo.check([step("PyTorch", 0.6, 0.86), step("ONNX FP32", 0.6, 0.86)], 0.85)
    with pytest.raises(CheckFailed, match=r"AP50 0\.840"):
        demo.check([step("PyTorch", 0.6, 0.84)], 0.85)


def test_a_step_that_lost_accuracy_is_refused_by_name() -> None:
    with pytest.raises(CheckFailed, match=r"ONNX FP32 lost 0\.100 points"):
        demo.check([step("PyTorch", 0.6, 0.9), step("ONNX FP32", 0.599, 0.9)], 0.85)
