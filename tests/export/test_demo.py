"""The demo at its smallest: its files, its table, and both answers of its gate."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.budget import BUDGETS
from export import demo
from runtime.detector import Detector
from runtime.media.image import read_image

ROOT = Path(__file__).parents[2]
MODELS = ["model.onnx", "model.fp16.onnx", "model.int8.onnx"]
TENSORRT = importlib.util.find_spec("tensorrt_rtx") is not None


def allow_everything(patch: pytest.MonkeyPatch) -> None:
    """Budgets that nothing exceeds, any model will do to see a loss, and ranges are searched on one image."""
    patch.setattr("calibration.images._MOST_RANGED", 1)
    patch.setattr("export.accuracy.verdict._too_little", lambda *_: "")
    for precision in BUDGETS:
        patch.setitem(BUDGETS, precision, 100)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The demo's folder and command line, once it ran with budgets that nothing exceeds.

    So little training is too little to promise that INT8 keeps within its own budget.
    """
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["--output", str(folder), "--train", "75", "--val", "24", "--epochs", "10", "--min-ap50", "0.01"]
    with pytest.MonkeyPatch.context() as patch:
        allow_everything(patch)
        assert demo.main(arguments) == 0
    return folder, arguments


def test_the_demo_makes_every_file(walked: tuple[Path, list[str]]) -> None:
    folder, _ = walked
    report = json.loads((folder / "report.json").read_text())
    assert report["passed"]
    engines = [("model.int8.engine", "built, not run")] if TENSORRT else []
    found = [(file["name"], file["status"]) for file in report["files"]]
    assert found == [*((name, "passed") for name in MODELS), *engines]
    if TENSORRT:
        assert (folder / "model.int8.engine").stat().st_size > 1e6
    assert (folder / "report.html").is_file()
    assert len(list((folder / "pictures").iterdir())) == 24
    sheet = read_image(folder / "detections.jpg")
    assert sheet.std() > 10  # an image, not a blank
    with Detector(folder / "model.onnx") as detector:
        assert detector.spec.class_names == ("circle", "square", "star", "triangle")


def test_the_demo_fails_where_the_gate_does_and_makes_nothing_twice(
    walked: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, arguments = walked
    for name in ("make_synthetic", "train"):  # the first run did both
        monkeypatch.setattr(demo, name, lambda *_, **__: None)
    allow_everything(monkeypatch)
    monkeypatch.setitem(BUDGETS, "fp16", -101)  # more than any file can gain
    with caplog.at_level(logging.INFO):
        assert demo.main(arguments) == 1
    current = [line.split("/")[-1] for line in caplog.messages if line.startswith("up to date: ")]
    assert current == [*MODELS, *(["model.int8.engine"] if TENSORRT else [])]
    assert not json.loads((folder / "report.json").read_text())["passed"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["model", "PyTorch", *MODELS]
    verdicts = ["✓ model.onnx: passed", "✗ model.fp16.onnx: failed; lost", "✓ model.int8.onnx: passed"]
    verdicts += ["– model.int8.engine: built, not run"] if TENSORRT else []
    found = [line for line in lines[6:] if line[:2] in ("✓ ", "✗ ", "– ")]
    assert all(line.startswith(verdict) for line, verdict in zip(found, verdicts, strict=True))


def test_a_model_that_did_not_learn_is_refused(tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path), "--train", "75", "--val", "4", "--epochs", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "export.demo", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1
    assert len(re.findall(r"^error: ", result.stderr, re.MULTILINE)) == 1
    assert "expected at least" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "model.onnx").exists()
