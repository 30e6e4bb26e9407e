"""Measures the activations of an FP16 file, layer by layer, against the range of FP16.

On a CPU, ONNX Runtime computes between neighboring operators in float32, so an overflow inside may not show in the maps.
Here every tensor is read as the FP16 value that it will be on a GPU.
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

FP16_MAX = float(np.finfo(np.float16).max)
"""Largest finite FP16 number: 65504."""


@dataclass(frozen=True)
class LayerPeak:
    """Largest activation of a layer.

    Attributes:
        layer: name of the node.
        operator: its ONNX operator.
        peak: largest finite magnitude.
        nonfinite: number of NaN and infinite values.
    """

    layer: str
    operator: str
    peak: float
    nonfinite: int


def scan(path: PathLike, images: Iterable[NDArray[Any]]) -> list[LayerPeak]:
    """Runs an FP16 file on batches and measures every FP16 layer.

    Args:
        path: the ONNX file.
        images: batches, each as the file's spec says.

    Returns:
        The layers in graph order.
    """
    peaks: dict[str, float] = {}
    nonfinite: dict[str, int] = {}
    with ActivationRunner(path) as runner:
        for image in images:
            for name, value in runner.run(image).items():
                if value.dtype != np.float16:
                    continue
                finite = np.isfinite(value)
                found = float(np.abs(value, where=finite, out=np.zeros_like(value)).max(initial=0))
                peaks[name] = max(peaks.get(name, 0.0), found)
                nonfinite[name] = nonfinite.get(name, 0) + int(value.size - np.count_nonzero(finite))
        return [LayerPeak(*runner.producers[name], peaks[name], nonfinite[name]) for name in runner.names if name in peaks]


def check_range(path: PathLike, images: Iterable[NDArray[Any]]) -> LayerPeak:
    """Returns the layer with the largest activation of an FP16 file.

    Raises:
        CheckFailed: a layer gives values that are not finite; the message names the first such layer.
    """
    layers = scan(path, images)
    overflowing = [layer for layer in layers if layer.nonfinite]
    if overflowing:
        first = overflowing[0]
        raise CheckFailed(
            f"FP16 does not hold this model: {first.layer} ({first.operator}) gives {first.nonfinite} values that are"
            f" not finite, as {len(overflowing)} of {len(layers)} layers do; FP16 ends at {FP16_MAX:.0f};"
            " export with --precision fp32, or train with weight decay"
        )
    return max(layers, key=lambda layer: layer.peak)
