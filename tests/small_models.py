"""Small models that several tests share."""

from __future__ import annotations

import numpy as np
import torch

from train.config import ModelConfig, TrainConfig
from train.model import YOLOv3, build_model

CLASSES = ("cat", "dog", "bird")


def tiny(**changes: object) -> TrainConfig:
    """A configuration that trains in seconds: an eighth of the width at 64 pixels."""
    changes.setdefault("adaption", changes.get("backbone") != "mobilenetv2")
    model = ModelConfig(width=0.125, depth=0.25, **changes)  # type: ignore[arg-type]
    return TrainConfig(recipe="tiny", model=model, size=64, sizes=(64,), epochs=2, batch=4, warmup_epochs=0, evaluate_every=1)


def noise(seed: int, count: int = 2, side: int = 64) -> np.ndarray:
    """Inputs of about the size that normalised pictures have, float32 `[count, 3, side, side]`."""
    return np.random.default_rng(seed).normal(size=(count, 3, side, side)).astype(np.float32)


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
            model.head_outputs(torch.randn(4, 3, 128, 128))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.clamp_(min=0.05)  # a channel that happens to be dead would magnify rounding by 300
    return model.eval()
