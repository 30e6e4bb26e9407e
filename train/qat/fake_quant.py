"""Rounds activations and weights of a running network to what an INT8 file computes with; gradients pass through."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from runtime.errors import ModelError
from train.qat.plan import QuantPlan, Scale

OPERATORS = {
    "conv2d": "Conv",
    "leaky_relu": "LeakyRelu",
    "relu": "Relu",
    "hardtanh": "Clip",
    "add": "Add",
    "__add__": "Add",
    "__radd__": "Add",
    "cat": "Concat",
}
"""ONNX's names of torch's functions at which something can be quantized."""

_MIN_SCALE, _DEAD_SCALE = 1e-12, 1.0  # of an output channel without weights


class FakeQuantization(TorchFunctionMode):
    """Quantizes and dequantizes in a network, as its plan says, while the context is open.

    The layers are named as torch's exporter names them: after the modules that are running, and by a count.

    Args:
        model: with its batch norms folded; in the context it runs once.
        plan: what to quantize.
        learned: float32 `[1]` in the place of scales of the plan, which get a gradient; see `learnable_scales`.

    Raises:
        ModelError: at the end of the context, the network had other layers than the plan.
    """

    def __init__(self, model: nn.Module, plan: QuantPlan, learned: Mapping[Scale, Tensor] | None = None) -> None:
        super().__init__()
        self._learned = learned or {}
        self._modules = {module: _own_name(name) for name, module in model.named_modules() if name}
        self._plan = plan
        self._prefixes = {unnumbered(name) for name in plan.layers}
        self._running: list[str] = []
        self._counts: Counter[str] = Counter()
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> FakeQuantization:
        self._counts.clear()
        self._running.clear()
        for module, name in self._modules.items():
            self._hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name)))
            self._hooks.append(module.register_forward_hook(lambda *_: self._left(), always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        while self._hooks:
            self._hooks.pop().remove()
        if kind is None:
            self._check_layers()

    def _left(self) -> None:
        self._running.pop()

    def _check_layers(self) -> None:
        ran = {name for prefix, count in self._counts.items() for name in _numbered(prefix, count)}
        _check_same(ran ^ self._plan.layers)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        operator = OPERATORS.get(getattr(func, "__name__", ""))
        prefix = "".join(f"/{name}" for name in (*self._running, operator))
        if operator is None or prefix not in self._prefixes:
            return func(*args, **(kwargs or {}))
        name = f"{prefix}_{self._counts[prefix]}" if self._counts[prefix] else prefix
        self._counts[prefix] += 1
        result = func(*self._quantized(name, operator, args), **(kwargs or {}))
        scale = self._plan.outputs.get(name)
        return self._quantized_activation(result, scale) if scale else result

    def _quantized_activation(self, value: Tensor, scale: Scale) -> Tensor:
        """Rounds an activation; its gradient is 1 within the range and 0 beyond, and a learned scale has LSQ's (1902.08153)."""
        learned = self._learned.get(scale)
        if learned is None:
            return torch.fake_quantize_per_tensor_affine(value, *scale)
        zero_point = torch.full_like(learned, scale.zero_point)
        return torch._fake_quantize_learnable_per_tensor_affine(value, learned, zero_point, scale.low, scale.high, 1.0)

    def _quantized(self, name: str, operator: str, args: Sequence[Any]) -> list[Any]:
        """Quantizes the arguments of a layer."""
        scales = self._plan.inputs.get(name, {})
        values = list(args[0] if operator == "Concat" else args)
        for index, scale in scales.items():
            values[index] = self._quantized_activation(values[index], scale)
        if operator == "Concat":
            return [values, *args[1:]]
        if name in self._plan.weights:
            values[1] = quantize_weight(values[1], self._plan.weights[name])
        return values


@torch.no_grad()
def scale_layers(model: nn.Module, plan: QuantPlan) -> None:
    """Multiplies the weights of a model with folded batch norms by the plan's factors, in place; it computes the same.

    Raises:
        ModelError: a layer of the plan is not in the model, or of another size.
    """
    different = set(plan.factors)
    for layer, module in _convolutions(model):
        pairs = [pair for pair in zip((module.weight, module.bias), plan.factors.get(layer, ())) if pair[0] is not None]
        if pairs and all(_fits(*pair) for pair in pairs):
            different.discard(layer)
            for parameter, factor in pairs:
                parameter.mul_(torch.from_numpy(factor).to(parameter))
    _check_same(different)


def _fits(parameter: Tensor, factor: NDArray[np.float64]) -> bool:
    return all(found in (1, size) for found, size in zip(factor.shape, parameter.shape))


def _convolutions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the modules with a weight, and the name of the convolution that each would be."""
    called = [(path, module) for path, module in model.named_modules() if path and not isinstance(module, nn.ModuleList)]
    names = {path: _own_name(path) for path, _ in called}
    for path, module in called:
        if getattr(module, "weight", None) is not None:
            parts = path.split(".")
            above = (".".join(parts[: end + 1]) for end in range(len(parts)))
            yield "".join(f"/{names[item]}" for item in above if item in names) + "/Conv", module


def _check_same(different: Collection[str]) -> None:
    if different:
        raise ModelError(
            f"the INT8 file was made of another network: {min(different)} and {len(different) - 1} more layers differ;"
            " quantize an export of these weights"
        )


def learnable_scales(plan: QuantPlan, device: torch.device) -> dict[Scale, nn.Parameter]:
    """Returns the logarithm of each scale of a plan as a parameter `[1]`; equal ones, as around a Concat, stay one."""
    found = sorted(set(plan.scales.values()))
    return {scale: nn.Parameter(torch.tensor([math.log(scale.scale)], device=device)) for scale in found}


def quantize_weight(weight: Tensor, largest: int) -> Tensor:
    """Rounds a weight `[O, ...]` with a scale per output channel, by which its largest magnitude becomes `largest`."""
    peak = weight.detach().flatten(1).abs().amax(dim=1).double() / largest
    scale = torch.where(peak < _MIN_SCALE, _DEAD_SCALE, peak).float()
    return torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -largest, largest
    )


def _own_name(path: str) -> str:
    """Shortens the path of a module to its last name and the numbers behind it, as the exporter does."""
    parts = path.split(".")
    numbers = len(list(itertools.takewhile(str.isdigit, reversed(parts))))
    return ".".join(parts[-numbers - 1 :])


def unnumbered(layer: str) -> str:
    """Removes the count from a layer's name."""
    head, _, count = layer.rpartition("_")
    return head if count.isdigit() and "/" in head else layer


def _numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}_{number}" if number else prefix for number in range(count)]
