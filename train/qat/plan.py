"""Describes what is quantized in a network, in plain values, by the names that its layers have in the exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Scale(NamedTuple):
    """8-bit quantization of an activation: value = scale * (q - zero_point), low <= q <= high."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class QuantPlan:
    """What is quantized in a network.

    Layers have the names of the ONNX file, `/<modules>/<operator>` and `_<n>` for the n-th repetition.

    Attributes:
        inputs: by layer and by the number of its input: how that activation is quantized.
        outputs: by layer: how its result is quantized, for all that read it.
        scales: by activation, as the calibration calls it: how it is quantized.
        weights: by convolution: the largest magnitude of a quantized weight; each output channel has a scale of its own.
        layers: names of the layers above, and of all others of the same modules and operators.
        factors: by convolution, what its weight (by broadcasting) and its bias are multiplied by before they are quantized.
    """

    inputs: Mapping[str, Mapping[int, Scale]]
    outputs: Mapping[str, Scale]
    scales: Mapping[str, Scale]
    weights: Mapping[str, int]
    layers: frozenset[str]
    factors: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
