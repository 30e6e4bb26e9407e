"""Shared by the calibration tests: exported tiny models, and a set whose ground truth is what such a model detects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.activations import ActivationRunner
from calibration.graph import Graph
from calibration.placement import place
from calibration.ranges import Range
from export.onnx_export.tracer import write_onnx
from runtime.detector import Detector
from runtime.files import write_json
from runtime.media.image import write_image
from tests.support.small_models import CLASSES, noise, settled, tiny
from tests.support.torch_fixtures import coco_set, make_checkpoint, steady_torch  # noqa: F401 - fixtures
from train.spec import model_spec

SIDE = 64  # of images, as of the model's input


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports a settled tiny model; arguments change its `ModelConfig`. The same arguments give the same file."""
    made: dict[str, Path] = {}

    def make(batch: int | None = None, **changes: object) -> Path:
        key = f"{batch}{sorted(changes.items())}"
        if key not in made:
            torch.manual_seed(0)
            config = tiny(**changes)
            made[key] = tmp_path_factory.mktemp("model") / "model.onnx"
            write_onnx(settled(config), model_spec(config, CLASSES), made[key], batch=batch)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_model(export: Callable[..., Path]) -> Path:
    """The smallest model with every kind of node: DarkNet, ASFF, guided anchors and adaption."""
    return export()


@pytest.fixture(scope="session")
def plain_model(export: Callable[..., Path]) -> Path:
    """Plain YOLOv3: the fewest layers, for tests that run a model often."""
    return export(guided=False, adaption=False, fusion="none", spp=False)


@pytest.fixture(scope="session")
def ranges_of() -> Callable[[Path, str], dict[str, Range]]:
    """The whole range of every activation that a target quantizes, over a little noise."""

    def find(path: Path, target: str) -> dict[str, Range]:
        tensors = list(place(Graph(onnx.load(path)), target).tensors)
        with ActivationRunner(path, tensors) as runner:
            values = runner.run(noise(0))
        return {name: Range(min(float(v.min()), 0.0), max(float(v.max()), 0.0)) for name, v in values.items()}

    return find


def blobs(rng: np.random.Generator) -> np.ndarray:
    """An image with structure at several sizes, uint8 `[SIDE, SIDE, 3]`."""
    image = np.zeros((SIDE, SIDE, 3))
    for step in (4, 16):
        coarse = rng.normal(size=(SIDE // step, SIDE // step, 3))
        image += np.kron(coarse, np.ones((step, step, 1)))
    return np.clip(image * 45 + 128, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def own_set(tmp_path_factory: pytest.TempPathFactory, plain_model: Path) -> Path:
    """A COCO set of 6 images to train, 24 to search, 6 to verify; its objects are what `plain_model` itself is surest of, so
    that its AP is 100."""
    root, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    with Detector(plain_model, score_threshold=0.01) as detector:
        scores = np.concatenate([detector(blobs(np.random.default_rng(seed))).scores for seed in range(6)])
        sure = float(np.quantile(scores, 0.8))
        for split, count in (("train", 6), ("search", 24), ("val", 6)):
            images, annotations = [], []
            for index in range(count):
                image = blobs(rng)
                write_image(root / split / f"{index}.png", image)
                images.append({"id": index, "file_name": f"{index}.png", "width": SIDE, "height": SIDE})
                found = detector(image)
                found = found[found.scores > sure]
                for box, kind in zip(found.boxes.tolist(), found.class_ids.tolist()):
                    x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
                    record = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
                    annotations.append({"id": len(annotations) + 1, "image_id": index, "category_id": kind + 1, **record})
            categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
            content = {"images": images, "annotations": annotations, "categories": categories}
            write_json(root / "annotations" / f"instances_{split}.json", content)
    return root
