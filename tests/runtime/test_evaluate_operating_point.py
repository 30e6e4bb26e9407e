"""`python -m runtime.evaluate`: the operating point that it prints, stores and plots."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.backends.open import open_backend
from runtime.evaluate import main
from runtime.files import sha256
from runtime.manifest import find_changes, manifest_path, read_manifest, write_manifest
from runtime.spec import ModelSpec
from tests.support.detect_command import RING_BOX

Command = Callable[..., tuple[int, str, str]]
MakeCoco = Callable[..., Path]


@pytest.fixture
def data(two_rings: Path) -> Path:
    return two_rings


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
    data = make_coco([(1, 64, 64, 255), (2, 64, 64, 255)], [(1, 9, RING_BOX)])  # the ring in the second image is not labeled
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
