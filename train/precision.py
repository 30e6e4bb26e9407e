"""Chooses how a step computes: number format, memory layout, compilation; scales the loss where the format needs it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from runtime.errors import MissingComponentError
from train.config import TrainConfig
from train.model import DetectorModel

log = logging.getLogger(__name__)

_GRAPHS = 64  # compiled forms of the network: training and evaluation, each with DropBlock's block sizes


class Precision:
    """How the steps of a run compute.

    Attributes:
        dtype: of the activations.
        channels_last: images and weights lie in memory pixel by pixel, as GPUs read them fastest in 16 bits.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Chooses for a device.

        Args:
            name: `fp32`, `bf16`, `fp16`, or `auto`: bf16 where the device computes in it, else fp32.
            device: to train on.

        Raises:
            MissingComponentError: the device does not compute in bf16.
        """
        if name == "auto":
            name = "bf16" if prefers_bfloat16(device) else "fp32"
        if name == "bf16" and device.type == "cuda" and not prefers_bfloat16(device):
            raise MissingComponentError(f"{device} does not compute in bf16; use --precision fp16 or fp32")
        self._name, self._device = name, device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.channels_last = device.type == "cuda" and self.dtype != torch.float32
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.scales)
        self._compiled = ""

    @property
    def scales(self) -> bool:
        """True if the loss is scaled (fp16), and a step whose gradients overflow is left out."""
        return self.dtype == torch.float16

    def place(self, model: DetectorModel) -> None:
        """Moves the model to the device, in the memory layout."""
        model.to(self._device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compile(self, model: DetectorModel, backend: str = "inductor") -> None:
        """Compiles the network's part of the loss, once for all input sizes.

        Raises:
            MissingComponentError: this machine lacks what the compiler needs.
        """
        if backend == "inductor" and self._device.type == "cpu":
            _check_compiler()
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
        model.compiled = torch.compile(model.outputs, dynamic=True, backend=backend)
        self._compiled = backend

    def describe(self, optimizer: torch.optim.Optimizer) -> str:
        """Says in one line what was chosen."""
        fused = bool(optimizer.defaults.get("fused"))
        parts = [
            self._name + (" with loss scaling" if self.scales else ""),
            "channels last" if self.channels_last else "channels first",
            ("fused " if fused else "") + type(optimizer).__name__,
            f"compiled ({self._compiled})" if self._compiled else "not compiled",
        ]
        return ", ".join(parts)

    def autocast(self) -> torch.autocast:
        """The context in which the loss is computed."""
        return torch.autocast(self._device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, scaled."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip(self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], most: float) -> Tensor:
        """Unscales the gradients and limits their norm to `most` (0: no limit); returns the norm they had."""
        self._scaler.unscale_(optimizer)
        return torch.nn.utils.clip_grad_norm_(parameters, most or math.inf)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Updates the weights; under loss scaling only if all gradients are finite."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The state that resuming needs: plain numbers."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave, if both runs scale."""
        if self.scales and state:
            self._scaler.load_state_dict(state)


def prefers_bfloat16(device: torch.device) -> bool:
    """True if the device computes in bfloat16; one that only emulates it is several times slower than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def set_up(config: TrainConfig, model: DetectorModel, device: torch.device, compile_with: str | None) -> Precision:
    """Makes the `Precision` of a run, places the model and compiles it if asked.

    Args:
        config: of the run.
        model: to train.
        device: to train on.
        compile_with: a backend of `torch.compile`; None: not compiled.
    """
    precision = Precision(config.precision, device)
    precision.place(model)
    if compile_with:
        precision.compile(model, compile_with)
    return precision


def _check_compiler() -> None:
    """Raises MissingComponentError unless there is a C++ compiler, which compiling for a CPU takes."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import, and seldom needed
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError, RuntimeError) as error:
        raise MissingComponentError("--compile needs a C++ compiler on a CPU; install g++, or leave --compile out") from error
