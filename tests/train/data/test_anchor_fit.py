"""Anchors fitted to boxes, by function, by command and at the start of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from runtime.errors import InputError
from tests.support.small_models import CLASSES, settled
from tests.support.training_runs import random_recipe, run_options
from train import checkpoint, run_log
from train.anchors import main
from train.checkpoint import Checkpoint
from train.data.anchor_fit import _shape_iou, fit_anchors, measure_fit
from train.loop import train
from train.losses.yolo_targets import AnchorSet, match
from train.run.folder import find_checkpoint
from train.spec import model_spec

CENTERS = tuple((8.0 * 1.6**k, 8.0 * 1.6 ** ((k * 5) % 9)) for k in range(9))


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files take time, and nothing here looks at them."""
    monkeypatch.setattr(run_log, "Board", lambda *_: MagicMock())


@pytest.fixture
def varied_set(coco_set: Path) -> Path:
    """The small dataset, with boxes of many shapes."""
    file = coco_set / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    first, number = content["annotations"][0], 0
    content["annotations"] = []
    for image in content["images"]:
        for _ in range(2):
            number += 1
            box = [1, 1, 8 + 2 * number % 19, 9 + 3 * number % 23]
            content["annotations"].append(
                {**first, "id": number, "image_id": image["id"], "bbox": box, "area": box[2] * box[3], "segmentation": []}
            )
    file.write_text(json.dumps(content))
    return coco_set


def clustered(count: int = 900, noise: float = 0.03) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.array(CENTERS)[np.arange(count) % 9] * rng.lognormal(0, noise, (count, 2))


def test_clusters_are_found_in_order_of_area_and_again() -> None:
    shapes = clustered()
    found = fit_anchors(shapes, 9, seed=3)
    assert np.allclose(sorted(found), sorted(CENTERS), rtol=0.05, atol=0.1)
    assert [w * h for w, h in found] == sorted(w * h for w, h in found)
    assert fit_anchors(shapes, 9, seed=3) == found
    fit = measure_fit(shapes, found)
    assert fit.recall == 1.0 and fit.mean_iou > 0.95 and fit.per_level == (300, 300, 300)
    assert fit.mean_iou > measure_fit(shapes, tuple((w * 1.3, h) for w, h in found)).mean_iou


def test_the_fit_is_measured_by_the_matching_of_training() -> None:
    shapes = clustered(50)
    labels = torch.zeros(1, 50, 5)
    labels[0, :, 1:] = torch.tensor(np.concatenate([np.full((50, 2), 30.0), shapes], axis=1), dtype=torch.float32)
    anchors = tuple(sorted(CENTERS, key=lambda side: side[0] * side[1]))
    matched = match(labels, AnchorSet.from_base(anchors, (32, 16, 8), True))
    fit = measure_fit(shapes, anchors)
    assert fit.mean_iou == pytest.approx(float(matched.anchor_iou.mean()), abs=1e-5)
    level = AnchorSet.from_base(anchors, (32, 16, 8), True).level_of(matched.anchor)
    assert fit.per_level == tuple(torch.bincount(level, minlength=3).tolist())


@pytest.mark.parametrize("shapes", [np.zeros((0, 2)), np.ones((50, 2)), np.array(CENTERS[:8] * 3)])
def test_too_few_shapes_are_one_line(shapes: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"the training images have [0-9]; use the recipe's"):
        fit_anchors(shapes, 9)


def test_exactly_as_many_shapes_as_anchors_are_those() -> None:
    found = fit_anchors(np.repeat(np.array(CENTERS), 4, axis=0), 9)
    assert _shape_iou(np.array(CENTERS), np.array(found)).max(axis=1).min() > 0.95


def test_the_command_prints_what_to_use(varied_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--data", str(varied_set), "--size", "64", "--recipe", "demo"]
    assert main([*common, "--output", str(tmp_path / "a.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[3].startswith("--size 64 --anchors ") and (tmp_path / "a.png").stat().st_size
    assert main([*common, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert lines[3].endswith(" ".join(f"{w:g},{h:g}" for w, h in values["fitted"]["anchors"]))
    assert values["fitted"]["mean_iou"] > values["recipe"]["mean_iou"]
    assert sum(values["fitted"]["per_level"]) == values["boxes"]
    with pytest.raises(InputError, match="RetinaNet"):
        main([*common[:4], "--recipe", "retinanet-r50"])


def test_a_run_fits_its_anchors_once_and_keeps_them(varied_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = random_recipe(anchor_source="auto", epochs=1)
    train(config, run_options(varied_set, tmp_path))
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved.config.model.anchors != config.model.anchors
    assert saved.spec.anchors[2][:3] == saved.config.model.anchors[:3]
    monkeypatch.setattr("train.run.prepare.fit_anchors", None)  # never again
    train(config, run_options(varied_set, tmp_path), find_checkpoint(tmp_path))
    with pytest.raises(InputError, match="anchor_source recipe, not auto"):
        train(config.replace(anchor_source="recipe"), run_options(varied_set, tmp_path), find_checkpoint(tmp_path))


def test_a_run_from_a_detector_keeps_the_anchors_of_its_heads(coco_set: Path, tmp_path: Path) -> None:
    other = replace(random_recipe().model, anchors=CENTERS)
    config = random_recipe(epochs=1, model=other)
    first = Checkpoint(config, model_spec(config, CLASSES), settled(config).state_dict(), None, 0, -1.0)
    checkpoint.save(tmp_path / "m.pt", first)
    wanted = random_recipe(epochs=1)
    options = run_options(coco_set, tmp_path / "run", init=tmp_path / "m.pt")
    train(wanted, options)
    found = checkpoint.load(tmp_path / "run" / "last.pt")
    assert (found.config.anchor_source, found.config.model.anchors) == ("weights", CENTERS)
    train(wanted, options, find_checkpoint(tmp_path / "run"))  # the same command again
    given = wanted.replace(anchor_source="given")
    train(given, run_options(coco_set, tmp_path / "given", init=tmp_path / "m.pt"))
    assert checkpoint.load(tmp_path / "given" / "last.pt").config.model.anchors == wanted.model.anchors
