"""Builds the optimizer and computes the learning rate over time (training recipe)."""

from __future__ import annotations

import math

import torch
from torch import nn

from train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Builds SGD with momentum, or AdamW, fused where the device has it; weight decay as `config.decay_all` says."""
    decayed = [p for p in model.parameters() if p.requires_grad and (p.ndim > 1 or config.decay_all)]
    plain = [p for p in model.parameters() if p.requires_grad and not (p.ndim > 1 or config.decay_all)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    # The fused form is one kernel, and skips a step whose scaled gradients overflowed without asking the device.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in model.parameters())
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=fused)


def learning_rate(epoch: float, config: TrainConfig) -> float:
    """Computes the rate at a (fractional) epoch: 4th-power warm-up, cosine decay, flat tail."""
    if epoch < config.warmup_epochs:
        return config.learning_rate * (epoch / config.warmup_epochs) ** 4
    fall = max(config.epochs - config.tail_epochs - config.warmup_epochs, 1e-9)
    done = min((epoch - config.warmup_epochs) / fall, 1.0)
    share = (1 + math.cos(math.pi * done)) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share
