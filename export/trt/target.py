"""Configures what an engine runs on: other GPUs, a DLA core of a Jetson, memory that the host needs too."""

from __future__ import annotations

import logging
from typing import Any

from export.trt.precision_check import network_layers
from runtime.backends.gpu import Gpu
from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import InputError, MissingComponentError

log = logging.getLogger(__name__)

_SHARE = 0.5
"""Of the memory that an integrated GPU shares with the host: as much as a layer may use as scratch memory."""
_NAMED = 5


def check_hardware_level(trt: TensorRT, name: str) -> None:
    """Checks that the library has a `HardwareCompatibilityLevel`.

    Raises:
        InputError: it has not.
    """
    if not hasattr(trt.api.HardwareCompatibilityLevel, name):
        flag = f"--{name.lower().replace('_', '-')}"
        raise InputError(f"{flag}: {trt.title} has no such engines, 10.9 and later do; leave it out")


def workspace_limit(asked: float | None, gpu: Gpu | None) -> float | None:
    """Chooses the scratch memory of a layer in GiB: what was asked for, else on an integrated GPU a share of the memory."""
    if asked is not None or gpu is None or not gpu.is_integrated or gpu.memory is None:
        return asked
    limit = round(gpu.memory * _SHARE / 2**30, 2)
    log.info("%s shares its memory with the host: scratch memory is limited to %g GiB (--workspace)", gpu.name, limit)
    return limit


def dla_batch(asked: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Chooses the batch of an engine for a DLA core, which takes a single size.

    Raises:
        InputError: several sizes were asked for.
    """
    batch = asked or (1, 1, 1)
    if len(set(batch)) > 1:
        raise InputError(f"--batch {','.join(map(str, batch))}: a DLA core takes one batch size; give one number")
    return batch


def check_dla(trt: TensorRT, builder: Any, core: int, precision: str) -> None:
    """Checks that this machine has a DLA core for a model.

    Raises:
        InputError: the library or the precision does not fit.
        MissingComponentError: the machine does not have that core.
    """
    if trt.flavor == "rtx":
        raise InputError(f"--dla: {trt.title} does not use DLA cores; leave it out, or use --flavor tensorrt")
    if precision == "fp32":
        raise InputError("--dla: DLA cores compute in FP16 or INT8, the file is fp32; export it with --precision fp16")
    count = builder.num_DLA_cores
    if core >= count:
        has = f"DLA cores 0 to {count - 1}" if count else "no DLA core"
        raise MissingComponentError(f"--dla {core}: {trt.title} finds {has} on this machine; leave it out to use the GPU")


def use_dla(trt: TensorRT, network: Any, config: Any, core: int) -> list[str]:
    """Lets all layers that can run on a DLA core do so, and the others on the GPU; returns the names of the others."""
    config.default_device_type = trt.api.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.api.BuilderFlag.GPU_FALLBACK)
    layers = list(network_layers(network))
    others = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    more = ", …" if len(others) > _NAMED else ""
    named = f" ({', '.join(others[:_NAMED])}{more})" if others else ""
    log.info("DLA core %d: %d of %d layers run on the GPU%s", core, len(others), len(layers), named)
    return others
