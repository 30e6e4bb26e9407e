"""Small models, and a trap, that several tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import settle
from train.config import RETINANET_ANCHORS, ModelConfig, TrainConfig
from train.model import DetectorModel, build_model

CLASSES = ("cat", "dog", "bird")


def tiny(**changes: object) -> TrainConfig:
    """A configuration that trains in seconds: an eighth of the width at 64 pixels (RetinaNet: 96)."""
    size = 64
    if changes.get("detector") == "retinanet":
        anchors = tuple((w / 2, h / 2) for w, h in RETINANET_ANCHORS)
        size, changes = 96, {"backbone": "resnet50", "guided": False, "adaption": False, "anchors": anchors, **changes}
    changes.setdefault("adaption", changes.get("backbone") != "mobilenetv2")
    model = ModelConfig(width=0.125, depth=0.25, **changes)  # type: ignore[arg-type]
    return TrainConfig(
        recipe="tiny", model=model, size=size, sizes=(size,), epochs=2, batch=4, warmup_epochs=0, evaluate_every=1
    )


def settled(config: TrainConfig, classes: int = len(CLASSES)) -> DetectorModel:
    """A random model of a configuration whose activations and offsets are of a real model's size."""
    return settle(build_model(config.model, classes, config.loss))


def noise(seed: int, count: int = 2, side: int = 64) -> np.ndarray:
    """Inputs of about the size that normalized images have, float32 `[count, 3, side, side]`."""
    return np.random.default_rng(seed).normal(size=(count, 3, side, side)).astype(np.float32)


class Trap:
    """Unpickled by a careless loader, this leaves a folder behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)
