"""`python -m train.validate`: the operating point of a checkpoint, and where it is stored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.errors import InputError, ModelError, OutputError
from runtime.files import write_json
from tests.support.small_models import CLASSES
from train import checkpoint
from train.torch_backend import open_torch_backend
from train.validate import _check_storable, main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def weights(make_checkpoint: Callable[..., Path]) -> Path:
    path = make_checkpoint()
    saved = checkpoint.load(path)
    checkpoint.save(path, dataclasses.replace(saved, optimizer={"state": {}, "param_groups": []}, epoch=7, best_ap=0.5))
    return path


@pytest.fixture
def data(coco_set: Path, weights: Path) -> Path:
    """A set whose objects are the best half of what the random model finds, so that it has a best threshold."""
    file = coco_set / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    detector = Detector(open_torch_backend(weights), score_threshold=0.01, max_detections=10)
    content["annotations"] = []
    for entry in open_dataset(coco_set, "val").images:
        found = detector(entry.read())
        for (left, top, right, bottom), class_id in zip(found.boxes[:5].tolist(), found.class_ids[:5].tolist()):
            box = [left, top, right - left, bottom - top]
            record = {"id": len(content["annotations"]), "image_id": entry.source_id, "category_id": class_id * 7 + 3}
            content["annotations"].append({**record, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    write_json(file, content)
    return coco_set


def test_a_stored_threshold_is_in_the_checkpoint_and_all_else_stays(command: Command, weights: Path, data: Path) -> None:
    before = checkpoint.load(weights)
    assert before.spec.operating_threshold is None
    code, out, err = command(main, "--weights", weights, "--data", data, "--json", "--store")
    assert code == 0
    point = json.loads(out)["operating_point"]
    assert (point["rule"], point["stored"], set(point["per_class"])) == ("best F1", None, set(CLASSES))
    assert f"{weights} stores the operating threshold {point['threshold']:.8g}\n" in err
    assert "its hash is another one now: files exported from it before name the old one as their source" in err
    after = checkpoint.load(weights)
    assert after.spec == before.spec.replace(operating_threshold=point["threshold"])
    assert (after.config, after.optimizer, after.epoch, after.best_ap) == (before.config, before.optimizer, 7, 0.5)
    for name, value in before.weights.items():
        torch.testing.assert_close(after.weights[name], value, rtol=0, atol=0)
    _, out, _ = command(main, "--weights", weights, "--data", data, "--json", "--batch", 3)
    found = json.loads(out)["operating_point"]["stored"]
    assert found == {key: point[key] for key in found}  # another batch size rounds otherwise, and lets in the same
    with Detector(open_torch_backend(weights)) as detector:
        assert detector.score_threshold == point["threshold"]


def test_a_wanted_precision(command: Command, weights: Path, data: Path) -> None:
    code, out, _ = command(main, "--weights", weights, "--data", data, "--precision", 0.9, "--json")
    point = json.loads(out)["operating_point"]
    assert code == 0 and point["rule"] == "precision >= 0.9" and point["precision"] >= 0.9
    assert checkpoint.load(weights).spec.operating_threshold is None  # without --store nothing is written
    code, out, _ = command(main, "--weights", weights, "--data", data, "--precision", 0.9)
    assert code == 0 and "operating point (precision >= 0.9): score >= " in out


def test_what_cannot_be_stored_in_is_refused_before_the_work(
    command: Command, weights: Path, data: Path, tmp_path: Path
) -> None:
    bytes_ = weights.read_bytes()
    code, out, err = command(main, "--weights", weights, "--data", "gone", "--store", "--size", 96)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {weights}: --store needs the checkpoint's own size, 64x64; leave out --size, or ")
    assert command(main, "--weights", weights, "--data", data, "--store", "--size", 64)[0] == 0
    assert weights.read_bytes() != bytes_


def test_published_weights_take_no_threshold(weights: Path, tmp_path: Path) -> None:
    torch.save(checkpoint.load(weights).weights, tmp_path / "published.pth")
    (tmp_path / "yolov3.weights").write_bytes(b"\0" * 20)
    for name in ("published.pth", "yolov3.weights"):
        with pytest.raises(InputError, match=f"{name}: --store needs a checkpoint of this project; make one"):
            _check_storable(str(tmp_path / name), None)


def test_a_full_disk_leaves_the_checkpoint_as_it_was(
    weights: Path, full_disk: Callable[..., AbstractContextManager[None]]
) -> None:
    before = weights.read_bytes()
    with full_disk(), pytest.raises(OutputError, match="cannot write"):
        checkpoint.store_threshold(weights, 0.5)
    assert weights.read_bytes() == before
    with pytest.raises(ModelError, match="operating_threshold"):
        checkpoint.store_threshold(weights, 1.5)
    assert weights.read_bytes() == before
