"""How far two runs of the same model are apart, on numpy arrays from any backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMITS = {"fp32": 1e-4, "fp16": 1e-2}
"""How far a file of a precision may be from PyTorch in float32. fp32: the largest difference, relative to the output's largest
magnitude. fp16: the root mean square of the difference, relative to that of the output; a single value says little there, and
what the rounding costs is for the accuracy gate to say (trained models: 4e-4)."""


ROUNDING = 4
"""How many times PyTorch's own distance from float64 a float32 file may be away where a model magnifies rounding."""
MOST_ROUNDING = 1e-2
"""Beyond this a model magnifies rounding so much that nothing can be said of a file."""


@dataclass(frozen=True)
class Difference:
    """The largest difference found in one output.

    Attributes:
        output: its name. absolute: max |a - b|. relative: that, divided by max |a| of the reference.
        rms: root mean square of a - b, divided by that of a.
    """

    output: str
    absolute: float
    relative: float
    rms: float

    def measure(self, precision: str) -> float:
        """The figure that counts for a precision."""
        return self.relative if precision == "fp32" else self.rms

    def agrees(self, precision: str) -> bool:
        """Whether it is small enough for a file of that precision; false for values that are not numbers."""
        return self.measure(precision) <= LIMITS[precision]


def compare(
    names: Sequence[str], reference: Sequence[NDArray[np.floating]], other: Sequence[NDArray[np.floating]]
) -> list[Difference]:
    """The largest difference of each output; infinite where shapes differ or a value is not finite."""
    return [_difference(name, a, b) for name, a, b in zip(names, reference, other)]


def _difference(name: str, reference: NDArray[np.floating], other: NDArray[np.floating]) -> Difference:
    if reference.shape != other.shape or not (np.isfinite(reference).all() and np.isfinite(other).all()):
        return Difference(name, float("inf"), float("inf"), float("inf"))
    error = reference.astype(np.float64) - other
    absolute, scale = float(np.abs(error).max()), float(np.abs(reference).max())
    power, noise = float(np.square(reference, dtype=np.float64).mean()), float(np.square(error).mean())
    return Difference(name, absolute, absolute / (scale or 1), (noise / (power or 1)) ** 0.5)


def worst(differences: Sequence[Difference]) -> Difference:
    """The one with the largest relative difference."""
    return max(differences, key=lambda difference: difference.relative)
