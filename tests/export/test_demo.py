"""The whole road at its smallest."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from runtime.detector import Detector
from runtime.media.image import read_image

ROOT = Path(__file__).parents[2]


def test_the_demo_walks_the_whole_road(tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path), "--train", "48", "--val", "8", "--epochs", "16", "--min-ap50", "0.01"]
    result = subprocess.run(
        [sys.executable, "-m", "export.demo", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    report = json.loads((tmp_path / "report.json").read_text())
    # So little training is too little to promise that INT8 keeps within its budget: the gate may say no, and then it must.
    assert result.returncode == (0 if report["passed"] else 1), result.stderr
    for name in ("PyTorch", "model.onnx", "model.fp16.onnx", "model.int8.onnx"):
        assert name in result.stdout
    if importlib.util.find_spec("tensorrt_rtx"):
        assert "model.int8.engine: built, not run" in result.stdout
        assert (tmp_path / "model.int8.engine").stat().st_size > 1e6
    assert (tmp_path / "report.html").is_file()
    assert len(list((tmp_path / "images").iterdir())) == 8
    sheet = read_image(tmp_path / "detections.jpg")
    assert sheet.std() > 10  # an image, not a blank
    with Detector(tmp_path / "model.onnx") as detector:
        assert detector.spec.class_names == ("circle", "square", "star", "triangle")


def test_a_model_that_did_not_learn_is_refused(tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path), "--train", "8", "--val", "4", "--epochs", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "export.demo", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1
    assert len(re.findall(r"^error: ", result.stderr, re.MULTILINE)) == 1
    assert "AP" in result.stderr.splitlines()[-1]
