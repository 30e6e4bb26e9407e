"""Small models, and a trap, that several tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from train.config import RETINANET_ANCHORS, ModelConfig, TrainConfig
from train.model import DetectorModel, RetinaNet, YOLOv3, build_model

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
    """A random model whose batch norms have seen data, so that activations and offsets are of a real model's size."""
    model = build_model(config.model, classes, config.loss)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # average over all batches seen
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        _speak_up(model)
        for fusion in model.fusions():
            if fusion.kind == "asff":
                fusion.weights.weigh.weight.mul_(0.25)  # as drawn, they choose one level nearly everywhere
        model.train()
        for _ in range(3):
            model.maps(torch.randn(4, 3, 128, 128))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.clamp_(min=0.05)  # a channel that happens to be dead would magnify rounding by 300
    return model.eval()


def _speak_up(model: DetectorModel) -> None:
    """A fresh model's last convolutions are so small that it says next to nothing."""
    if isinstance(model, YOLOv3):
        for head in model.heads:
            for conv in filter(None, [head.guide, head.predict, head.adapt.offsets if head.adapt else None]):
                conv.weight.normal_(0, 0.1)
    else:
        assert isinstance(model, RetinaNet)
        for tower in (model.head.classes, model.head.boxes):
            tower[-1].weight.normal_(0, 0.03)
            tower[-1].bias.zero_()


class Trap:
    """Unpickled by a careless loader, this leaves a folder behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)
