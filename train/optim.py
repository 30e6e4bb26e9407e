"""Builds the optimizer and computes the learning rate over time (training recipe)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from train.config import TrainConfig
from train.parts import part_of, rate_factor, trainable


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Builds SGD with momentum, or AdamW, fused where the device has it; weight decay as `config.decay_all` says.

    A group of parameters holds its factor on the learning rate as `rate_factor`. What never trains is in none.
    """
    named = trainable(model, config)
    # What thaws later is apart: fused SGD takes weights with and without momentum in one group for an error.
    kinds = [(rate_factor(config, name), dict(config.freeze).get(part_of(name), 0)) for name, _ in named]
    groups: list[dict[str, Any]] = []
    for factor, thaw in dict.fromkeys(kinds):
        own = [p for (_, p), kind in zip(named, kinds) if kind == (factor, thaw)]
        for decay, decays in ((config.weight_decay, True), (0.0, False)):
            params = [p for p in own if (p.ndim > 1 or config.decay_all) == decays]
            groups.append({"params": params, "weight_decay": decay, "rate_factor": factor})
    # The fused form is one kernel, and skips a step whose scaled gradients overflowed without asking the device.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in model.parameters())
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=fused)


def warmup_span(config: TrainConfig, steps: int | None = None) -> float:
    """Returns the epochs of the warm-up: the configured ones, at least `warmup_steps`, and at most a third of all.

    Args:
        config: of the run.
        steps: of an epoch; None leaves `warmup_steps` out of account.
    """
    if not config.warmup_epochs:
        return 0.0
    floor = config.warmup_steps / steps if steps else 0.0
    return min(max(config.warmup_epochs, floor), config.epochs / 3)


def learning_rate(epoch: float, config: TrainConfig, steps: int | None = None) -> float:
    """Computes the rate at a (fractional) epoch: 4th-power warm-up, cosine decay, flat tail; `steps` as in `warmup_span`."""
    warmup = warmup_span(config, steps)
    if epoch < warmup:
        return config.learning_rate * (epoch / warmup) ** 4
    fall = max(config.epochs - config.tail_epochs - warmup, 1e-9)
    done = min((epoch - warmup) / fall, 1.0)
    share = (1 + math.cos(math.pi * done)) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share
