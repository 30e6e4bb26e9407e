"""Small models and sets that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from runtime.files import write_json
from runtime.images import write_image
from train import checkpoint
from train.checkpoint import Checkpoint
from train.config import ModelConfig, TrainConfig
from train.loop import model_spec
from train.model import YOLOv3, build_model

CLASSES = ("cat", "dog", "bird")

torch.set_num_threads(1)  # the models are so small that threads mostly wait for each other


@pytest.fixture(autouse=True)
def _steady() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
    cv2.setRNGSeed(0)
    return


def tiny(**changes: object) -> TrainConfig:
    """A configuration that trains in seconds: an eighth of the width at 64 pixels."""
    model = ModelConfig(width=0.125, depth=0.25, **changes)  # type: ignore[arg-type]
    return TrainConfig(recipe="tiny", model=model, size=64, sizes=(64,), epochs=2, batch=4, warmup_epochs=0, evaluate_every=1)


def settled(config: TrainConfig, classes: int = len(CLASSES)) -> YOLOv3:
    """A random model whose batch norms have seen data, so that activations and offsets are of a real model's size."""
    model = build_model(config.model, classes, config.loss)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # average over all batches seen
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        for head in model.heads:
            for conv in filter(None, [head.guide, head.predict, head.adapt.offsets if head.adapt else None]):
                conv.weight.normal_(0, 0.1)
        model.train()
        for _ in range(3):
            model.head_outputs(torch.randn(4, 3, 64, 64))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.clamp_(min=0.05)  # a channel that happens to be dead would magnify rounding by 300
    return model.eval()


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint of a settled tiny model; arguments change its `ModelConfig`."""

    def make(name: str = "model.pt", **changes: object) -> Path:
        config = tiny(**changes)
        model = settled(config)
        saved = Checkpoint(config, model_spec(config, CLASSES), model.state_dict(), None, 0, -1.0)
        checkpoint.save(tmp_path / name, saved)
        return tmp_path / name

    return make


@pytest.fixture
def coco_set(tmp_path: Path) -> Path:
    """A COCO-layout set of 8 + 4 small pictures with one bright rectangle each, class told by its colour; one is empty."""
    rng = np.random.default_rng(0)
    root = tmp_path / "set"
    for split, count in (("train", 8), ("val", 4)):
        images, annotations = [], []
        for index in range(count):
            picture = rng.integers(0, 60, (72, 96, 3), dtype=np.uint8)
            if index:
                kind, (x, y) = index % 3, rng.integers(0, 40, 2).tolist()
                picture[y : y + 30, x : x + 40, kind] = 230
                box = {"bbox": [x, y, 40, 30], "area": 1200, "iscrowd": 0}
                annotations.append({"id": index, "image_id": index, "category_id": kind * 7 + 3, **box})
            write_image(root / split / f"{index}.png", picture)
            images.append({"id": index, "file_name": f"{index}.png", "width": 96, "height": 72})
        categories = [{"id": i * 7 + 3, "name": name} for i, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(root / "annotations" / f"instances_{split}.json", content)
    return root
