"""An operating threshold on its way: exported with the weights, stored in the file, of no concern to the gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from export import verify
from export.chain import export_step
from export.onnx_export.export import ExportRequest, export_onnx
from export.trt.engine import read_spec
from runtime.evaluation.store import store_threshold
from runtime.manifest import find_changes, manifest_path, read_manifest
from tests.support.small_sets import Exported
from train import checkpoint


@pytest.fixture
def weights(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the shared weights, for a test to store in."""
    return Path(shutil.copy(exported.weights, tmp_path / "w.pt"))


def export(weights: Path, output: Path) -> Path:
    for _ in export_onnx(ExportRequest(weights=weights, output=output)):
        pass
    return output


def test_a_file_is_exported_with_the_threshold_of_its_weights(weights: Path, tmp_path: Path) -> None:
    checkpoint.store_threshold(weights, 0.375)
    model = export(weights, tmp_path / "m.onnx")
    assert read_spec(model).operating_threshold == read_manifest(manifest_path(model)).spec.operating_threshold == 0.375


def test_a_threshold_in_the_weights_makes_the_chain_export_again_one_in_the_file_does_not(
    weights: Path, tmp_path: Path
) -> None:
    model = export(weights, tmp_path / "m.onnx")
    step = export_step(weights, model, "fp32")
    assert step.is_current()
    store_threshold(model, 0.5)
    assert step.is_current()
    assert read_spec(model).operating_threshold == 0.5
    onnx.checker.check_model(str(model), full_check=True)
    checkpoint.store_threshold(weights, 0.375)
    assert not step.is_current()
    (line,) = find_changes(manifest_path(model))
    assert line == f"{weights} (weights): changed since m.onnx was made from it"


def test_the_gate_passes_a_file_with_a_threshold_of_its_own(exported: Exported, tmp_path: Path) -> None:
    model = Path(shutil.copy(exported.model, tmp_path / "m.onnx"))
    store_threshold(model, 0.9)  # far above most of what it finds: the gate scores from the score threshold on
    arguments = ["--weights", exported.weights, "--data", exported.data, "--split", "val2017", "--output", tmp_path / "report"]
    assert verify.main([str(item) for item in (*arguments, model)]) == 0
    (file,) = json.loads((tmp_path / "report" / "report.json").read_text())["files"]
    assert (file["status"], file["notes"]) == ("passed", ["has no manifest beside it"])
    assert abs(file["measured"]["change"]) <= 0.05
