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

from runtime.backends.open import open_backend
from runtime.evaluate import main
from runtime.evaluation.coco import METRICS
from runtime.files import sha256
from runtime.manifest import find_changes, manifest_path, read_manifest, write_manifest
from runtime.spec import ModelSpec

Command = Callable[..., tuple[int, str, str]]
MakeCoco = Callable[..., Path]
BOX = (32, 18, 16, 12)  # where the tiny model finds a `ring` in a white 64 x 64 image


@pytest.fixture
def data(make_coco: MakeCoco) -> Path:
    """Two white images with the ring (found), and a black one with a dot (missed)."""
    images = [(41, 64, 64, 255), (7, 128, 128, 255), (900_000_000_000, 64, 64, 0)]
    boxes = [(41, 9, BOX), (7, 9, tuple(2 * value for value in BOX)), (900_000_000_000, 3, (1, 1, 20, 20))]
    return make_coco(images, boxes)


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
    assert rows[0].split() == ["AP", "50.00"] and rows[5].split() == ["APl", "-"]
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
    np.testing.assert_allclose([r["bbox"] for r in records], [BOX, [2 * v for v in BOX]], atol=1e-3)
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
        (("--data", "hollow"), "neither the COCO layout"),
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
    assert done.stderr.startswith(f"{tiny_onnx} runs in ONNX Runtime ") and done.stderr.count("\n") == 1
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


@pytest.fixture
def own_model(write_onnx: Callable[..., Path], make_spec: Callable[..., ModelSpec], tmp_path: Path) -> Path:
    """The tiny model with its manifest, for a test to store in."""
    (tmp_path / "own").mkdir()
    model = write_onnx(tmp_path / "own" / "m.onnx")
    write_manifest(model, make_spec(), [], {"parity": {}})
    return model


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


SCORE = pytest.approx(0.9994, abs=1e-4)  # just below that of the rings
FOUND = {"threshold": SCORE, "precision": 1, "recall": 1, "f1": 1, "right": 2, "wrong": 0, "objects": 2}
MISSED = {"threshold": SCORE, "precision": None, "recall": 0, "f1": 0, "right": 0, "wrong": 0, "objects": 1, "own": None}


@pytest.mark.parametrize(("options", "rule"), [((), "best F1"), (("--precision", "0.9"), "precision >= 0.9")])
def test_the_operating_point_as_json(
    options: tuple[str, ...], rule: str, command: Command, tiny_onnx: Path, data: Path
) -> None:
    code, out, err = command(main, "--engine", tiny_onnx, "--data", data, "--json", *options)
    assert (code, err) == (0, "")
    point = json.loads(out)["operating_point"]
    assert point.pop("per_class") == {"dot": MISSED, "ring": {**FOUND, "own": FOUND}}
    assert point == {
        "rule": rule,
        "iou": 0.5,
        "threshold": SCORE,
        "precision": 1,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "right": 2,
        "wrong": 0,
        "objects": 3,
        "stored": None,
    }


def test_the_operating_point_in_the_table(command: Command, tiny_onnx: Path, data: Path) -> None:
    _, out, _ = command(main, "--engine", tiny_onnx, "--data", data)
    rows = [row.split() for row in out.splitlines()[17:-2]]
    assert out.splitlines()[17].startswith("operating point (best F1): score >= ") and rows[0][-1] == "0.5"
    score = rows[0][6].rstrip(",")
    assert rows[2:] == [
        ["all", "3", "100.00", "66.67", "80.00", score],
        ["dot", "1", "–", "0.00", "0.00", "–"],
        ["ring", "2", "100.00", "100.00", "100.00", score],
    ]


@pytest.mark.parametrize("options", [(), ("--precision", "0.5")])
def test_a_stored_threshold_is_in_the_file_and_its_manifest(
    options: tuple[str, ...], command: Command, own_model: Path, data: Path
) -> None:
    arguments = ("--engine", own_model, "--data", data, "--json", *options)
    code, out, err = command(main, *arguments, "--store")
    assert code == 0
    threshold = json.loads(out)["operating_point"]["threshold"]
    assert f"{own_model} stores the operating threshold {threshold:.8g}\n" in err and "INT8 files and engines" in err
    with open_backend(own_model) as backend:
        assert backend.spec.operating_threshold == threshold
    manifest = manifest_path(own_model)
    assert (read_manifest(manifest).spec.operating_threshold, find_changes(manifest)) == (threshold, [])
    _, out, _ = command(main, *arguments)
    assert json.loads(out)["operating_point"]["stored"] == {**FOUND, "recall": 2 / 3, "f1": 0.8, "objects": 3}
    _, out, _ = command(main, *arguments[:4])
    assert out.splitlines()[-3] == (f"at {threshold:.8g}, which the model stores: precision 100.00, recall 66.67, F1 80.00")


def test_no_detection_at_all(
    command: Command, write_onnx: Callable[..., Path], make_spec: Callable[..., ModelSpec], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    model = write_onnx(tmp_path / "own" / "none.onnx", spec=make_spec(score_threshold=1))
    before = files(tmp_path / "own")
    arguments = ("--engine", model, "--data", data)
    code, out, _ = command(main, *arguments)
    assert code == 0 and out.splitlines()[-3:] == [
        "operating point (best F1): –, no detection is right",
        "",
        "3 images, 0 detections",
    ]
    code, out, _ = command(main, *arguments, "--json")
    empty = {**dict.fromkeys(("threshold", "precision", "recall", "f1")), "per_class": {}, "stored": None}
    assert code == 0 and json.loads(out)["operating_point"] == {"rule": "best F1", "iou": 0.5, **empty}
    for options in (("--store",), ("--precision", "0.5"), ("--store", "--precision", "1")):
        results = tmp_path / "results.json"
        code, out, err = command(main, *arguments, *options, "--coco-results", results)
        assert (code, out, err.count("\n"), results.exists()) == (1, "", 1, False)
        assert err.startswith("error: no detection on val2017 is right, so there is no threshold to choose; ")
        assert files(tmp_path / "own") == before


def test_a_split_without_objects(command: Command, own_model: Path, make_coco: MakeCoco) -> None:
    empty = make_coco([(1, 64, 64, 255)])
    before = files(own_model.parent)
    code, out, _ = command(main, "--engine", own_model, "--data", empty)
    assert code == 0 and "operating point (best F1): –" in out
    for options in (("--store",), ("--precision", "0.5")):
        code, out, err = command(main, "--engine", own_model, "--data", empty, *options)
        assert (code, out) == (2, "")
        assert err == f"error: {empty}: split 'val2017' has no object to measure by; choose another --split\n"
    assert files(own_model.parent) == before


def test_a_precision_that_no_threshold_has(command: Command, own_model: Path, make_coco: MakeCoco) -> None:
    data = make_coco([(1, 64, 64, 255), (2, 64, 64, 255)], [(1, 9, BOX)])  # the ring in the second image is not labeled
    before = files(own_model.parent)
    code, out, err = command(main, "--engine", own_model, "--data", data, "--precision", 0.51, "--store")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"error: no threshold has a precision of 0\.51 on val2017: the highest is 0\.5, at \S+ with a recall of 1;"
        r" ask for less\n",
        err,
    )
    assert files(own_model.parent) == before
    assert command(main, "--engine", own_model, "--data", data, "--precision", 0.5, "--store")[0] == 0
    assert files(own_model.parent) != before


@pytest.mark.parametrize("value", ["0", "-0.1", "1.01", "nan", "95%", ""])
def test_precisions_that_make_no_sense(value: str, command: Command, tiny_onnx: Path, data: Path) -> None:
    code, out, err = command(main, "--engine", tiny_onnx, "--data", data, "--precision", value)
    assert (code, out) == (2, "") and re.fullmatch(r"error: argument --precision: .*--help\n", err)


def test_a_file_that_cannot_be_stored_in_is_refused_before_the_work(command: Command, own_model: Path, data: Path) -> None:
    manifest = manifest_path(own_model)
    manifest.write_text(manifest.read_text().replace(sha256(own_model), "0" * 64))
    before = files(own_model.parent)
    code, out, err = command(main, "--engine", own_model, "--data", "gone", "--store")
    assert (code, out) == (2, "") and "is not the file that m.onnx.json describes" in err
    assert command(main, "--engine", own_model, "--data", data)[0] == 0  # it is still evaluated
    assert files(own_model.parent) == before


def test_plots_of_the_evaluation(command: Command, tiny_onnx: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "plots"
    code, out, err = command(main, "--engine", tiny_onnx, "--data", data, "--json", "--plots", folder)
    assert (code, err) == (0, f"the plots are in {folder}\n")
    assert sorted(files(folder)) == ["confusion.png", "curves.json", "f1.png", "precision-recall.png"]
    content = json.loads((folder / "curves.json").read_text())
    assert {**content["operating_point"], "stored": None} == json.loads(out)["operating_point"]
    assert content["confusion"] == {
        "classes": ["dot", "ring", "background"],
        "counts": [[0, 0, 1], [0, 2, 0], [0, 0, None]],
    }


def test_plots_that_cannot_be_drawn_or_written(
    command: Command, own_model: Path, write_onnx: Callable[..., Path], make_spec: Callable[..., ModelSpec], data: Path
) -> None:
    folder = data.parent / "plots"
    nothing = write_onnx(data.parent / "none.onnx", spec=make_spec(score_threshold=1))
    code, out, err = command(main, "--engine", nothing, "--data", data, "--plots", folder)
    assert (code, out, list(folder.iterdir())) == (1, "", []) and "no detection on val2017 is right" in err
    (data.parent / "file").write_text("")
    before = files(own_model.parent)
    code, out, err = command(main, "--engine", own_model, "--data", data, "--plots", data.parent / "file" / "x", "--store")
    assert (code, out) == (2, "") and err.startswith("error: cannot write into ")
    assert files(own_model.parent) == before
