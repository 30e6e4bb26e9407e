"""`python -m runtime.evaluate`: the figures, the results file and the exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.evaluate import main
from runtime.evaluation.coco import METRICS
from runtime.spec import ModelSpec
from tests.support.detect_command import RING_BOX

Command = Callable[..., tuple[int, str, str]]
MakeCoco = Callable[..., Path]


@pytest.fixture
def data(two_rings: Path) -> Path:
    return two_rings


SUMMARY = "val2017: 3 images, 3 objects: ring 2, dot 1; 3 small, 0 medium, 0 large"


def test_figures_as_json(command: Command, tiny_onnx: Path, data: Path) -> None:
    code, out, err = command(main, "--engine", tiny_onnx, "--data", data, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert list(report) == ["figures", "per_class", "images", "skipped", "operating_point"]
    assert tuple(report["figures"]) == METRICS and len(METRICS) == 12
    assert report["figures"]["AP"] == pytest.approx(0.5, abs=1e-9)  # of two classes one is found, perfectly
    assert report["figures"]["APl"] == -1
    assert report["per_class"] == {"dot": 0, "ring": pytest.approx(1, abs=1e-9)}
    assert (report["images"], report["skipped"]) == (3, [])


def test_figures_as_a_table(command: Command, tiny_onnx: Path, data: Path) -> None:
    code, out, _ = command(main, "--engine", tiny_onnx, "--data", data, "--batch", 2)
    assert code == 0
    rows = out.splitlines()
    assert [row.split()[0] for row in rows[:12]] == list(METRICS)
    assert rows[0].split() == ["AP", "50.00"] and rows[5].split() == ["APl", "–"]
    assert [row.split() for row in rows[13:16]] == [["class", "AP"], ["dot", "0.00"], ["ring", "100.00"]]
    assert rows[-1] == "3 images, 2 detections"


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_results_file_is_what_pycocotools_takes(
    batch: int, command: Command, tiny_onnx: Path, data: Path, tmp_path: Path
) -> None:
    from pycocotools.coco import COCO

    results = tmp_path / "out" / "results.json"
    code, _, _ = command(main, "--engine", tiny_onnx, "--data", data, "--batch", batch, "--coco-results", results)
    assert code == 0
    records = json.loads(results.read_text())
    assert [(r["image_id"], r["category_id"]) for r in records] == [(41, 9), (7, 9)]
    np.testing.assert_allclose([r["bbox"] for r in records], [RING_BOX, [2 * v for v in RING_BOX]], atol=1e-3)
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(data / "annotations" / "instances_val2017.json")).loadRes(str(results))
    assert len(loaded.getAnnIds()) == 2


def test_a_fixed_batch_size(command: Command, write_onnx: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "fixed.onnx", batch=2)
    code, out, _ = command(main, "--engine", model, "--data", data, "--batch", 3, "--json")
    assert code == 0 and json.loads(out)["figures"]["AP"] == pytest.approx(0.5, abs=1e-9)


def test_thresholds_are_the_models_own(
    command: Command, write_onnx: Callable[..., Path], make_spec: Callable[..., ModelSpec], data: Path, tmp_path: Path
) -> None:
    everything = write_onnx(tmp_path / "all.onnx", spec=make_spec(score_threshold=0, nms_threshold=1))
    results = tmp_path / "results.json"
    code, _, _ = command(main, "--engine", everything, "--data", data, "--coco-results", results)
    assert code == 0 and len(json.loads(results.read_text())) == 300  # 100 of 336 an image


def test_unreadable_images(command: Command, tiny_onnx: Path, data: Path) -> None:
    (data / "val2017" / "900000000000.png").write_bytes(b"")
    code, out, err = command(main, "--engine", tiny_onnx, "--data", data, "--json")
    report = json.loads(out)
    assert code == 0 and report["images"] == 2 and report["figures"]["AP"] == pytest.approx(1, abs=1e-9)
    assert len(report["skipped"]) == 1 and "900000000000.png: the file is empty" in report["skipped"][0]
    assert "1 of 3 images could not be read" in err
    code, out, _ = command(main, "--engine", tiny_onnx, "--data", data)
    assert code == 0 and out.splitlines()[-1] == "2 images, 1 skipped, 2 detections"
    code, out, err = command(main, "--engine", tiny_onnx, "--data", data, "--strict")
    assert (code, out) == (2, "") and err.startswith("error: ") and "900000000000.png" in err


def test_a_model_that_answers_nan_is_damaged(
    command: Command, data: Path, tmp_path: Path, write_onnx: Callable[..., Path], make_spec: Callable[..., ModelSpec]
) -> None:
    broken = {"p4": np.full(make_spec().map_shape(1), np.nan, np.float32)}
    write_onnx(tmp_path / "nan.onnx", changed=broken)
    results = tmp_path / "results.json"
    code, out, err = command(main, "--engine", tmp_path / "nan.onnx", "--data", data, "--coco-results", results)
    assert (code, out, results.exists()) == (2, "", False)
    assert err == "error: output p4 holds NaN; the model is damaged\n"


@pytest.mark.parametrize("names", [("bell", "dot"), ("dot", "ring", "cat")])
def test_other_classes_than_the_models(
    names: tuple[str, ...],
    command: Command,
    write_onnx: Callable[..., Path],
    make_spec: Callable[..., ModelSpec],
    data: Path,
    tmp_path: Path,
) -> None:
    model = write_onnx(tmp_path / "other.onnx", spec=make_spec(class_names=names))
    code, out, err = command(main, "--engine", model, "--data", data)
    assert (code, out) == (2, "")
    assert (
        err.startswith(f"error: the model has {len(names)} classes, {data} has 2 (only in the model: ") and err.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "gone"), "gone: no such dataset folder"),
        (("--data", "hollow"), "no dataset layout that is known"),
        (("--data", "coco", "--split", "test"), "no split 'test'; found val2017"),
        (("--data", "coco", "--coco-results", "file/results.json"), "cannot write"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...],
    message: str,
    command: Command,
    tiny_onnx: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hollow").mkdir()
    Path("file").write_text("")
    code, out, err = command(main, "--engine", tiny_onnx, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("--engine", "x.onnx"), ("--engine", "x.onnx", "--data", "d", "--batch", "0")])
def test_bad_arguments(arguments: tuple[str, ...], command: Command) -> None:
    code, out, err = command(main, *arguments)
    assert (code, out) == (2, "") and re.fullmatch(r"error: .*; see python -m runtime\.evaluate --help\n", err)


def test_the_command_line(tiny_onnx: Path, data: Path) -> None:
    text = [sys.executable, "-m", "runtime.evaluate", "--engine", str(tiny_onnx), "--data", str(data), "--json"]
    done = subprocess.run(text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr.startswith(f"{tiny_onnx} runs in ONNX Runtime ") and done.stderr.splitlines()[1:] == [SUMMARY]
    assert json.loads(done.stdout)["figures"]["AP"] == pytest.approx(0.5, abs=1e-9)


def test_a_failed_evaluation_leaves_earlier_results_alone(
    command: Command, tiny_onnx: Path, data: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results.json"
    results.write_text("earlier")
    (data / "val2017" / "900000000000.png").write_bytes(b"")
    code, _, _ = command(main, "--engine", tiny_onnx, "--data", data, "--strict", "--coco-results", results)
    assert code == 2
    assert results.read_text() == "earlier"
    code, out, err = command(main, "--engine", tiny_onnx, "--data", data, "--coco-results", tmp_path)
    assert (code, out) == (2, "")
    assert "it is a folder" in err
