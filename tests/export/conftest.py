"""Shared by the tests of the gate and its report: a set on which a random model is perfect, and ways to break its export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.onnx_export.export import ExportRequest, export_onnx
from runtime.detector import Detector
from runtime.media.image import write_image
from runtime.results.records import to_coco_results
from tests.support.small_models import CLASSES, settled, tiny
from tests.support.small_sets import IMAGES, Exported, write_labels
from tests.support.torch_fixtures import coco_set, make_checkpoint, steady_torch  # noqa: F401 - fixtures
from train import checkpoint
from train.checkpoint import Checkpoint
from train.spec import model_spec
from train.torch_backend import TorchBackend

_OBJECTS = 20


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The ground truth is what the random model itself finds, its best boxes of each class; so it scores an AP of 100, and
    whatever changes what it finds costs AP, just as it would a trained model. The images are colored and not square, so
    that swapped colors and a wrong resize change what it finds."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("exported")
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    for head in model.heads:
        head.predict.weight.data *= 2  # scores of up to 0.8 rather than 0.05, so that some boxes are worth looking at
    weights, data, path = root / "best.pt", root / "data", root / "best.onnx"
    checkpoint.save(weights, Checkpoint(config, spec, model.state_dict(), None, 0, -1.0))
    rng = np.random.default_rng(0)
    detector = Detector(TorchBackend(model, spec), score_threshold=0.01)
    found = []
    for index in range(IMAGES):
        image = np.kron(rng.integers(0, 256, (6, 10, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        write_image(data / "val2017" / f"{index}.png", image)
        found += to_coco_results(index, detector(image), range(len(CLASSES)))
    objects = []
    for category_id in range(len(CLASSES)):
        mine = sorted((r for r in found if r["category_id"] == category_id), key=lambda r: -r["score"])
        objects += mine[:_OBJECTS]
    write_labels(data, objects)
    for _ in export_onnx(ExportRequest(weights=weights, output=path)):
        pass
    return Exported(weights, path, data)


@pytest.fixture
def altered(exported: Exported, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the exported file with some metadata changed, or one layer's weights multiplied by a factor."""

    def alter(name: str = "altered.onnx", layer: str = "", factor: float = 1.0, **metadata: Any) -> Path:
        model = onnx.load(exported.model)
        for entry in model.metadata_props:
            entry.value = json.dumps(metadata[entry.key]) if entry.key in metadata else entry.value
        if layer:
            (node,) = [node for node in model.graph.node if node.name == layer]
            (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == node.input[1]]
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return alter
