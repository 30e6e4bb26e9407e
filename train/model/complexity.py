"""Counts a detector's parameters and operations without running it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.config import ModelConfig
from train.model import build_model
from train.model.deform_conv import DeformConv


@dataclass(frozen=True)
class Complexity:
    """Parameters, and operations per image for each input side in pixels."""

    parameters: int
    operations: dict[int, int]


@functools.cache  # several recipes train the same network
def complexity(config: ModelConfig, num_classes: int, sides: tuple[int, ...]) -> Complexity:
    """Counts one detector on square inputs.

    A multiply-add counts as two operations. Convolutions alone are counted, a deformable one like a plain one of its size
    (without its sampling); counted like this, the authors' networks have the published numbers.
    """
    with torch.device("meta"), torch.no_grad():
        model = build_model(config, num_classes).eval()
        operations = {side: _operations(model, torch.zeros(1, 3, side, side)) for side in sides}
    return Complexity(sum(p.numel() for p in model.parameters()), operations)


def _operations(model: nn.Module, images: Tensor) -> int:
    total = 0

    def add(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, (nn.Conv2d, DeformConv))
        total += 2 * output.numel() * conv.weight[0].numel()

    convolutions = [module for module in model.modules() if isinstance(module, (nn.Conv2d, DeformConv))]
    hooks = [module.register_forward_hook(add) for module in convolutions]
    model(images)
    for hook in hooks:
        hook.remove()
    return total
