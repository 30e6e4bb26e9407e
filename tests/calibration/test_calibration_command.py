"""`python -m calibration`: the file, its manifest, the budget, and one line for everything that can be wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration import pipeline
from calibration.__main__ import main
from calibration.graph import Graph
from calibration.images import dataset_sha256
from calibration.placement import place
from calibration.ranges import METHODS, Range
from calibration.sensitivity import smallest_set
from runtime.backends.ort import OrtBackend
from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.evaluation.bootstrap import Bounds
from runtime.files import sha256
from runtime.manifest import find_changes, read_manifest
from runtime.media.image import read_image, write_image

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def calibrate(command: Command, plain_model: Path, own_set: Path, tmp_path: Path) -> Command:
    """Runs the command on the plain model and its own set, by min-max; later arguments replace these."""

    def call(*arguments: object, onnx: Path = plain_model, data: Path = own_set) -> tuple[int, str, str]:
        fixed = ("--onnx", onnx, "--data", data, "--output", tmp_path / "m.int8.onnx", "--method", "minmax")
        fixed += ("--search-split", "search")
        return command(main, *fixed, *arguments)

    return call


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def damage(monkeypatch: pytest.MonkeyPatch, layer: str, factor: float) -> None:
    """Every method finds a range `factor` times too large for what enters one layer."""
    plain = pipeline._Work.ranges

    def wrong(work: pipeline._Work, method: str) -> dict[str, Range]:
        found = plain(work, method)
        tensor = next(node.input[0] for node in work.model.graph.node if node.name == layer)
        return found | {tensor: Range(found[tensor].low * factor, found[tensor].high * factor)}

    monkeypatch.setattr(pipeline._Work, "ranges", wrong)


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_a_file_and_its_manifest(target: str, calibrate: Command, own_set: Path, plain_model: Path, tmp_path: Path) -> None:
    code, out, err = calibrate("--target", target, "--max-ap-drop", 100, "--images", 4, "--seed", 3, "--json")
    assert code == 0, err
    report, file = json.loads(out), tmp_path / "m.int8.onnx"
    assert report["before"]["figures"]["AP"] > 0.99  # the truth is the model's own
    assert 0.2 < report["after"]["figures"]["AP"] < report["before"]["figures"]["AP"]
    with Detector(file) as detector:
        assert detector.spec.precision == "int8"
        assert detector.spec.source_sha256 == OrtBackend(plain_model).spec.source_sha256
        detector(read_image(own_set / "val" / "0.png"))
    manifest = read_manifest(tmp_path / "m.int8.onnx.json")
    assert find_changes(tmp_path / "m.int8.onnx.json") == [] and manifest.sha256 == sha256(file)
    assert [(item.role, item.sha256) for item in manifest.made_from] == [("onnx", sha256(plain_model))]
    assert set(manifest.details) == {"settings", "data", "calibration", "accuracy"}
    expected = {"method": "minmax", "target": target, "rest": None, "images": 4, "seed": 3, "max_ap_drop": 100}
    splits = {"calibration_split": "train", "search_split": "search", "split": "val"}
    assert manifest.details["settings"] == {**expected, **splits, "sensitivity": False}
    hashes = [item["sha256"] for item in manifest.details["calibration"]["images"]]
    assert manifest.details["data"] == {
        "calibration images": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "search images": dataset_sha256(open_dataset(own_set, "search")),
    }
    _check_details(manifest.details["calibration"], target, own_set, plain_model)
    assert manifest.details["accuracy"]["int8"] == report["after"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *(file.name, f"{file.name}.json", f"{file.name}.peaks.npz", f"{file.name}.ranges.npz")
    }


def _check_details(details: dict[str, Any], target: str, own_set: Path, model: Path) -> None:
    assert list(details) == [
        *("method", "target", "rest", "seed", "split", "images", "search", "ranges", "histograms"),
        *("float_layers", "half_layers", "sensitivity"),
    ]
    assert details["rest"] == {"tensorrt": "fp16", "cpu": "fp32"}[target]
    assert (details["method"], details["target"], details["seed"], details["split"]) == ("minmax", target, 3, "train")
    assert len(details["images"]) == 4
    assert details["search"]["split"] == "search" and len(details["search"]["images"]) == 24
    assert all(item["sha256"] == sha256(own_set / "train" / item["name"]) for item in details["images"])
    placement = place(Graph(onnx.load(model)), target)
    assert list(details["ranges"]) == list(details["histograms"]) == list(placement.tensors)
    for name, span in details["ranges"].items():
        histogram = details["histograms"][name]
        assert set(span) == {"low", "high"} and span["low"] <= 0 <= span["high"]
        assert set(histogram) == {"edges", "counts", "threshold"}
        assert histogram["threshold"] == max(-span["low"], span["high"])
        assert len(histogram["edges"]) == 2 and len(histogram["counts"]) == 64 and sum(histogram["counts"]) > 0
    assert details["float_layers"] == list(placement.float_layers)
    assert details["half_layers"] == details["sensitivity"] == []


def test_the_same_request_gives_the_same_bytes_and_reuses_the_ranges(
    calibrate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calibrate("--max-ap-drop", "none")[0] == 0
    first = sha256(tmp_path / "m.int8.onnx"), sha256(tmp_path / "m.int8.onnx.json")
    monkeypatch.setattr("calibration.collect.ActivationRunner", None)  # nothing may be run again
    assert calibrate("--max-ap-drop", "none")[0] == 0
    assert (sha256(tmp_path / "m.int8.onnx"), sha256(tmp_path / "m.int8.onnx.json")) == first


def test_auto_takes_the_method_with_the_best_ap(calibrate: Command, tmp_path: Path) -> None:
    code, out, err = calibrate("--method", "auto", "--max-ap-drop", "none", "--json")
    assert code == 0
    scores = {line.split()[0]: float(line.split()[1]) for line in err.splitlines() if line.split()[0] in METHODS}
    assert set(scores) == set(METHODS)
    report = json.loads(out)
    assert scores[report["method"]] == max(scores.values())
    loss = report["after"]["figures"]["AP"] - report["before"]["figures"]["AP"]
    assert loss * 100 == pytest.approx(scores[report["method"]], abs=0.006)


def test_the_table_shows_every_class(calibrate: Command) -> None:
    code, out, _ = calibrate("--max-ap-drop", 100)
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:] if len(line.split()) == 4}
    assert {"AP", "AP50"} < set(rows) and {"cat", "dog", "bird"} & set(rows)
    assert out.splitlines()[3].split() == ["fp32", "int8", "ΔAP"]
    for before, after, delta in rows.values():
        assert float(delta) == pytest.approx(float(after) - float(before), abs=0.011)


LAYER = "/backbone/stages.1/stages.1.0/conv/Conv"


def test_a_damaged_layer_is_found_and_taken_back(calibrate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sound, _ = calibrate("--max-ap-drop", 100, "--json")
    lost = -json.loads(sound)["delta_ap"]["lower"]
    damage(monkeypatch, LAYER, 8)
    monkeypatch.setattr(pipeline, "choose_layers", lambda ranking, keeps, most: smallest_set(ranking, partial(keeps, most)))
    budget = lost + 6  # within reach of the other layers, not with this one
    code, out, err = calibrate("--max-ap-drop", budget)
    assert code == 0, err
    details = read_manifest(tmp_path / "m.int8.onnx.json").details["calibration"]
    ranked = details["sensitivity"]
    assert ranked[0]["layer"] == LAYER
    assert details["half_layers"] == [LAYER], err
    assert set(ranked[0]) == {"layer", "error", "ap_drop", "bytes"}
    assert [item["ap_drop"] is not None for item in ranked] == [index < 5 for index in range(len(ranked))]
    assert ranked[0]["ap_drop"] > max(item["ap_drop"] for item in ranked[1:5])
    assert f"1 of them went back to FP16, which costs {ranked[0]['bytes'] / 1e6:.2f} MB" in out and LAYER in out
    made = Graph(onnx.load(tmp_path / "m.int8.onnx"))
    weight = made.constant(next(node.input[1] for node in made.nodes if node.name == LAYER))
    assert weight is not None and weight.dtype == np.float16


def test_the_layers_are_ranked_on_request(calibrate: Command, tmp_path: Path) -> None:
    assert calibrate("--max-ap-drop", 100, "--sensitivity")[0] == 0
    details = read_manifest(tmp_path / "m.int8.onnx.json").details["calibration"]
    errors = [item["error"] for item in details["sensitivity"]]
    assert len(errors) > 20 and errors == sorted(errors, reverse=True) and errors[0] > 0
    assert details["half_layers"] == []


def test_a_budget_nothing_meets(calibrate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline._Work, "delta", lambda *_, **__: Bounds(-7.0, 0.1, -7.2, -6.8, 0.95))
    code, out, err = calibrate("--max-ap-drop", 0.5)
    assert (code, out) == (1, "")
    assert "even with every layer in FP16 ΔAP is -7.00 points (above -7.20), the budget is 0.50" in one_line(err)
    ranking = err.split("the most sensitive first:\n")[1].splitlines()[:40]
    assert all(line.startswith("/") and "% of the detections" in line for line in ranking)
    assert not (tmp_path / "m.int8.onnx").exists() and not (tmp_path / "m.int8.onnx.json").exists()


def test_an_interrupted_ranking_is_taken_up(calibrate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline._Work, "delta", lambda *_, **__: Bounds(-7.0, 0.1, -7.2, -6.8, 0.95))
    runs, plain = [0], OrtBackend.infer

    def infer(backend: OrtBackend, images: Any) -> Any:
        runs[0] += 1
        if runs[0] == 60:
            raise KeyboardInterrupt
        return plain(backend, images)

    monkeypatch.setattr(OrtBackend, "infer", infer)
    assert calibrate("--max-ap-drop", 0.5)[0] == 130
    known = json.loads((tmp_path / "m.int8.onnx.sensitivity.json").read_text())
    assert 0 < len(known["values"]) < 40
    runs[0] = 100  # no more interruptions
    assert calibrate("--max-ap-drop", 0.5)[0] == 1
    left = 40 - len(known["values"])
    assert runs[0] == 100 + 24 + 6 * (1 + left)  # scoring the float model, its outputs, and the layers that were left


def test_calibrating_on_images_of_another_kind_is_seen(calibrate: Command, own_set: Path, tmp_path: Path) -> None:
    """Images of nothing but gray leave ranges far too small; the budget says so."""
    data = Path(shutil.copytree(own_set, tmp_path / "grey"))
    for path in (data / "train").iterdir():
        write_image(path, np.random.default_rng(0).integers(122, 126, (64, 64, 3), dtype=np.uint8))
    losses = []
    for folder in (own_set, data):
        code, out, _ = calibrate("--max-ap-drop", 100, "--json", data=folder)
        assert code == 0
        losses.append(1 - json.loads(out)["after"]["figures"]["AP"])
    assert losses[1] > losses[0] + 0.05


@pytest.mark.parametrize("batch", [1, 4])
def test_models_of_a_fixed_batch_size(batch: int, calibrate: Command, export: Callable[..., Path], tmp_path: Path) -> None:
    code, out, err = calibrate(
        "--max-ap-drop", 100, "--json", onnx=export(batch=batch, guided=False, adaption=False, fusion="none", spp=False)
    )
    assert code == 0, err
    assert json.loads(out)["after"]["figures"]["AP"] > 0.2
    with OrtBackend(tmp_path / "m.int8.onnx") as backend:
        assert backend.batch_size == batch


def test_an_image_that_cannot_be_read_is_replaced(calibrate: Command, own_set: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(own_set, tmp_path / "torn"))
    (data / "train" / "2.png").write_bytes(b"no image")
    code, _, err = calibrate("--images", 5, "--max-ap-drop", "none", data=data)
    assert code == 0 and "left out of calibration" in err and "2.png" in err
    names = [item["name"] for item in read_manifest(tmp_path / "m.int8.onnx.json").details["calibration"]["images"]]
    assert names == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    code, _, err = calibrate("--images", 6, "--max-ap-drop", "none", data=data)
    assert code == 2 and "has 5 images that can be read, 6 are needed" in one_line(err)
    for path in (data / "train").iterdir():
        path.write_bytes(b"no image")
    code, _, err = calibrate("--max-ap-drop", "none", data=data)
    assert code == 2 and "0 images that can be read" in one_line(err)


def change_json(data: Path, split: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = data / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_data_that_cannot_serve(calibrate: Command, own_set: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
        ("train", lambda c: c.update(images=[], annotations=[]), "has no images"),
        ("search", lambda c: c.update(annotations=[]), "the search images of 'search' have no object"),
        ("search", lambda c: c["categories"][0].update(name="zebra"), "only in the data: zebra"),
    ]
    for index, (split, change, message) in enumerate(cases):
        data = Path(shutil.copytree(own_set, tmp_path / f"case{index}"))
        change_json(data, split, change)
        code, _, err = calibrate(data=data)
        assert code == 2 and message in one_line(err)
    assert not list(tmp_path.glob("m.int8.onnx*.onnx"))
    for arguments, message in (
        (("--images", 7), "has 6 images, 7 were asked for"),
        (("--calibration-split", "val"), "6 images of 'val' are calibrated on too, by their content (such as 0.png)"),
        (("--split", "search"), "24 images of 'search' are searched on too"),
        (("--search-split", "train"), "6 images of 'train' are calibrated on too"),
        (("--split", "none"), "none"),
    ):
        code, _, err = calibrate(*arguments)
        assert code == 2 and message in one_line(err)
    (tmp_path / "empty").mkdir()
    assert calibrate(data=tmp_path / "empty")[0] == calibrate(data=tmp_path / "absent")[0] == 2


def test_models_that_cannot_serve(calibrate: Command, plain_model: Path, tmp_path: Path) -> None:
    bare, fp16, nan = onnx.load(plain_model), onnx.load(plain_model), onnx.load(plain_model)
    del bare.metadata_props[:]
    next(item for item in fp16.metadata_props if item.key == "precision").value = '"fp16"'
    for weight in nan.graph.initializer:
        value = numpy_helper.to_array(weight)
        if value.ndim == 4:
            weight.CopyFrom(numpy_helper.from_array(np.full_like(value, np.nan), weight.name))
    for name, model, message in (
        ("bare", bare, "no model spec"),
        ("fp16", fp16, "is of precision fp16"),
        ("nan", nan, "gives values that are not finite on"),
    ):
        onnx.save(model, tmp_path / f"{name}.onnx")
        code, out, err = calibrate(onnx=tmp_path / f"{name}.onnx")
        assert (code, out) == (2, "") and message in one_line(err)
    (tmp_path / "text.onnx").write_bytes(b"text")
    assert "not a usable ONNX model" in one_line(calibrate(onnx=tmp_path / "text.onnx")[2])
    assert "no such model file" in one_line(calibrate(onnx=tmp_path / "absent.onnx")[2])
    assert not list(tmp_path.glob("m.int8*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--method", "guess"),
        ("--images", "0"),
        ("--max-ap-drop", "101"),
        ("--max-ap-drop", "nan"),
        ("--target", "tpu"),
        ("--seed", "-1"),
    ],
)
def test_wrong_usage(arguments: tuple[str, str], calibrate: Command) -> None:
    code, _, err = calibrate(*arguments)
    assert code == 2 and arguments[0] in one_line(err)


def test_an_output_that_cannot_be(
    calibrate: Command, command: Command, plain_model: Path, own_set: Path, tmp_path: Path
) -> None:
    for output, message in (
        (plain_model, "which it is made from; choose another name"),
        (tmp_path / "m.engine", "expected a name ending in .onnx"),
    ):
        code, _, err = command(main, "--onnx", plain_model, "--data", own_set, "--output", output)
        assert code == 2 and message in one_line(err)
    (tmp_path / "m.int8.onnx").mkdir()
    assert "it is a folder" in one_line(calibrate()[2])


@pytest.mark.parametrize("size", [2_000, 60_000, 400_000])
def test_a_full_disk_leaves_nothing_half_written(
    size: int, calibrate: Command, full_disk: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    (tmp_path / "m.int8.onnx").write_bytes(b"earlier")
    with full_disk(size):
        code, _, err = calibrate("--max-ap-drop", 100)
    assert code == 2 and "error: " in one_line(err)
    assert (tmp_path / "m.int8.onnx").read_bytes() == b"earlier"
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "m.int8.onnx.json").exists()


def test_a_good_output_stays_where_its_manifest_cannot_be_written(calibrate: Command, tmp_path: Path) -> None:
    (tmp_path / "m.int8.onnx").write_bytes(b"good")
    (tmp_path / "m.int8.onnx.json").mkdir()
    code, _, err = calibrate("--max-ap-drop", "none")
    assert code == 2 and "m.int8.onnx.json" in one_line(err)
    assert (tmp_path / "m.int8.onnx").read_bytes() == b"good"


def test_ctrl_c_keeps_the_ranges(calibrate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "evaluate", interrupted)
        assert calibrate()[0] == 130
    assert {path.name for path in tmp_path.iterdir()} == {"m.int8.onnx.peaks.npz", "m.int8.onnx.ranges.npz"}
    monkeypatch.setattr("calibration.collect.ActivationRunner", None)
    assert calibrate("--max-ap-drop", 100)[0] == 0
