"""From weights to a verified engine: every file once, again only what changed, and no engine where accuracy fell."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calibration.budget import BUDGETS
from export import chain
from runtime.errors import CheckFailed
from runtime.files import write_json
from runtime.manifest import find_changes
from runtime.media.image import write_image
from tests.support.small_models import CLASSES

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt-rtx is not installed (pip install tensorrt-rtx)"
)


Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(exported: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Run:
    """Runs the chain on the model that finds everything in its own set, with a train split to calibrate on; its exit code,
    and which files it made (True) or found up to date (False)."""
    data, weights = tmp_path / "data", tmp_path / "run" / "best.pt"
    shutil.copytree(exported.data, data)  # type: ignore[attr-defined]
    weights.parent.mkdir()
    shutil.copy(exported.weights, weights)  # type: ignore[attr-defined]
    rng = np.random.default_rng(5)
    for index in range(3):
        image = np.kron(rng.integers(0, 256, (6, 10, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        write_image(data / "train2017" / f"{index}.png", image)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 72} for i in range(3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [],
    }
    write_json(data / "annotations" / "instances_train2017.json", content)
    caplog.set_level(logging.INFO)

    def call(*arguments: str) -> tuple[int, list[str]]:
        caplog.clear()
        code = chain.main(["--weights", str(weights), "--data", str(data), "--flavor", "rtx", *arguments])
        made = [line.split(" --")[0].removeprefix("+ python -m ") for line in caplog.messages if line.startswith("+ ")]
        return code, made

    return call


ALL = ["export.onnx", "calibration", "export.engine", "export.verify"]


def test_everything_is_made_once_and_again_only_if_it_changed(run: Run, tmp_path: Path) -> None:
    request = ("--precision", "int8", "--max-ap-drop", "100")
    assert run(*request) == (0, ALL)
    folder = tmp_path / "run"
    names = [f"tiny-64-{part}" for part in ("fp32.onnx", "int8.onnx", "int8.engine")]
    for name in names:
        assert find_changes(folder / f"{name}.json") == []
    assert set(json.loads((folder / "chain.json").read_text())) == set(names)
    report = json.loads((folder / "report.json").read_text())
    assert [file["status"] for file in report["files"]] == ["passed", "passed", "built, not run"]

    assert run(*request) == (0, ["export.verify"])
    model = folder / names[0]
    original = model.read_bytes()
    model.write_bytes(original + b"\0")  # tampered with: made again, to the same bytes, so that nothing else is
    assert run(*request) == (0, ["export.onnx", "export.verify"])
    assert model.read_bytes() == original
    assert run(*request, "--size", "96") == (0, ALL)  # another size has files of its own
    assert run(*request) == (0, ["export.verify"])


def test_no_engine_is_built_where_accuracy_fell(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="was not written"):
        run("--precision", "int8", "--max-ap-drop", "0")
    folder = tmp_path / "run"
    assert (folder / "tiny-64-fp32.onnx").exists()
    assert not list(folder.glob("*int8.onnx")) and not list(folder.glob("*.engine"))


def test_the_gate_has_the_last_word(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget below nothing at all, for the gate alone."""
    monkeypatch.setitem(BUDGETS, "fp32", -1.0)
    code, made = run("--precision", "fp32")
    assert (code, made) == (1, ["export.onnx", "export.engine", "export.verify"])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert not report["passed"]
    assert [file["status"] for file in report["files"]] == ["failed", "built, not run"]
