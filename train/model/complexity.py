"""Counts a detector's parameters and operations without running it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from train.config import ModelConfig
from train.model import build_model
from train.model.deform_conv import DeformConv
from train.model.detector import DetectorModel


@dataclass(frozen=True)
class Complexity:
    """Parameters, and operations per image for each input side in pixels."""

    parameters: int
    operations: dict[int, int]


# On the meta device PyTorch computes shapes in Python, and slowly: what keeps the shape, and values, are left out.
_SAME_SHAPE = (DeformConv, nn.BatchNorm2d, nn.LeakyReLU, nn.ReLU, nn.ReLU6)


def _unchanged(x: Tensor, *_: Tensor) -> Tensor:
    return x


class _NoInit(TorchFunctionMode):
    """Leaves weights as they are created."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function of PyTorch, except those that initialize a tensor."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or getattr(func, "__name__", "") in _FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_FILLS = {"normal_", "uniform_", "fill_", "zero_"}


@functools.cache  # several recipes train the same network
def complexity(config: ModelConfig, num_classes: int, sides: tuple[int, ...]) -> Complexity:
    """Counts one detector on square inputs.

    A multiply-add counts as two operations. Convolutions alone are counted, a deformable one like a plain one of its size
    (without its sampling); counted like this, the authors' networks have the published numbers.
    """
    with torch.no_grad():
        with torch.device("meta"), _NoInit():
            model = build_model(config, num_classes).eval()
        for module in model.modules():
            if isinstance(module, _SAME_SHAPE):
                setattr(module, "forward", _unchanged)  # noqa: B010 (mypy knows methods as fixed)
        operations = {side: _operations(model, torch.empty(1, 3, side, side, device="meta")) for side in sides}
    return Complexity(sum(p.numel() for p in model.parameters()), operations)


def _operations(model: DetectorModel, images: Tensor) -> int:
    total = 0

    def add(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, (nn.Conv2d, DeformConv))
        total += 2 * output.numel() * conv.weight[0].numel()

    convolutions = [module for module in model.modules() if isinstance(module, (nn.Conv2d, DeformConv))]
    hooks = [module.register_forward_hook(add) for module in convolutions]
    model.maps(images)
    for hook in hooks:
        hook.remove()
    return total
