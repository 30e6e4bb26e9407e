"""How far two runs of the same model are apart, on numpy arrays from any backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Largest difference between float32 backends, relative to the largest magnitude of the output."""


@dataclass(frozen=True)
class Difference:
    """The largest difference found in one output.

    Attributes:
        output: its name. absolute: max |a - b|. relative: that, divided by max |a| of the reference.
    """

    output: str
    absolute: float
    relative: float

    def within(self, tolerance: float) -> bool:
        """Whether it is small enough; false for values that are not numbers."""
        return self.relative <= tolerance


def compare(
    names: Sequence[str], reference: Sequence[NDArray[np.float32]], other: Sequence[NDArray[np.float32]]
) -> list[Difference]:
    """The largest difference of each output; infinite where shapes differ or a value is not finite."""
    return [_difference(name, a, b) for name, a, b in zip(names, reference, other)]


def _difference(name: str, reference: NDArray[np.float32], other: NDArray[np.float32]) -> Difference:
    if reference.shape != other.shape or not (np.isfinite(reference).all() and np.isfinite(other).all()):
        return Difference(name, float("inf"), float("inf"))
    absolute = float(np.abs(reference.astype(np.float64) - other).max())
    scale = float(np.abs(reference).max())
    return Difference(name, absolute, absolute / scale if scale else absolute)


def worst(differences: Sequence[Difference]) -> Difference:
    """The one with the largest relative difference."""
    return max(differences, key=lambda difference: difference.relative)
