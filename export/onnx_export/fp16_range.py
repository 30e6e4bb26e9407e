"""What half precision does inside a model: activations near or beyond its range, by layer.

On a CPU, ONNX Runtime computes between neighboring operators in float32, so that an overflow inside can leave no trace in the
maps. Here every tensor is asked for, as the half-precision value it will be on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.activations import ActivationRunner
from runtime.errors import CheckFailed
from runtime.files import PathLike

HALF_MAX = float(np.finfo(np.float16).max)
"""Largest finite number of half precision: 65504."""


@dataclass(frozen=True)
class LayerPeak:
    """The largest activation of a layer.

    Attributes:
        layer, operator: of the node. peak: largest finite magnitude. broken: how many values were not finite.
    """

    layer: str
    operator: str
    peak: float
    broken: int


def scan(path: PathLike, images: Iterable[NDArray[Any]]) -> list[LayerPeak]:
    """Run an FP16 file on batches as its description says; every layer in half precision, in graph order."""
    peaks: dict[str, float] = {}
    broken: dict[str, int] = {}
    with ActivationRunner(path) as runner:
        for image in images:
            for name, value in runner.run(image).items():
                if value.dtype != np.float16:
                    continue
                finite = np.isfinite(value)
                found = float(np.abs(value, where=finite, out=np.zeros_like(value)).max(initial=0))
                peaks[name] = max(peaks.get(name, 0.0), found)
                broken[name] = broken.get(name, 0) + int(value.size - np.count_nonzero(finite))
        return [LayerPeak(*runner.producers[name], peaks[name], broken[name]) for name in runner.names if name in peaks]


def check_range(path: PathLike, images: Iterable[NDArray[Any]]) -> LayerPeak:
    """The layer with the largest activation of an FP16 file.

    Raises:
        CheckFailed: a layer gives values that are not finite; the message names the first.
    """
    layers = scan(path, images)
    overflowing = [layer for layer in layers if layer.broken]
    if overflowing:
        first = overflowing[0]
        raise CheckFailed(
            f"half precision does not hold this model: {first.layer} ({first.operator}) gives {first.broken} values that are"
            f" not finite, as {len(overflowing)} of {len(layers)} layers do; half precision ends at {HALF_MAX:.0f};"
            " export with --precision fp32, or train with weight decay"
        )
    return max(layers, key=lambda layer: layer.peak)
