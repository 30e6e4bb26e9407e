"""Fixtures that need torch; the conftest of each folder that uses them imports them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.files import write_json
from runtime.media.image import write_image
from tests.support.small_models import CLASSES, settled, tiny
from train import checkpoint
from train.checkpoint import Checkpoint
from train.spec import model_spec

torch.set_num_threads(1)  # the models are so small that threads mostly wait for each other


@pytest.fixture(autouse=True)
def steady_torch() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


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
    """A COCO-layout set of 8 + 4 small images with one bright rectangle each, class told by its color; one is empty."""
    rng = np.random.default_rng(0)
    root = tmp_path / "set"
    for split, count in (("train", 8), ("val", 4)):
        images, annotations = [], []
        for index in range(count):
            image = rng.integers(0, 60, (72, 96, 3), dtype=np.uint8)
            if index:
                kind, (x, y) = index % 3, rng.integers(0, 40, 2).tolist()
                image[y : y + 30, x : x + 40, kind] = 230
                box = {"bbox": [x, y, 40, 30], "area": 1200, "iscrowd": 0}
                annotations.append({"id": index, "image_id": index, "category_id": kind * 7 + 3, **box})
            write_image(root / split / f"{index}.png", image)
            images.append({"id": index, "file_name": f"{index}.png", "width": 96, "height": 72})
        categories = [{"id": i * 7 + 3, "name": name} for i, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(root / "annotations" / f"instances_{split}.json", content)
    return root
