"""Inspection outputs of a model with ASFF: fusion weights and activations per level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.spec import level_name

FUSED_STRIDES = (32, 16, 8)
"""Strides of the levels that ASFF fuses, coarsest first (levels 1, 2, 3 of the paper), as are a weight map's channels."""


def inspection_shapes(input_size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    """Returns (channels, height, width) by name of the inspection outputs of an exported file, in its order.

    Args:
        input_size: (height, width) in pixels.
    """
    height, width = input_size
    return {
        level_name(prefix, stride): (channels, height // stride, width // stride)
        for prefix, channels in (("w", len(FUSED_STRIDES)), ("f", 1))
        for stride in FUSED_STRIDES
    }


@dataclass(frozen=True, eq=False)
class Inspection:
    """Outputs of a model for a batch, with its fusion weights and activations, coarsest level first.

    Attributes:
        outputs: as `Backend.infer` returns them.
        weights: per fused level, float32 `[N, 3, H/s, W/s]` in [0, 1]: shares of levels 5, 4, 3; they sum to 1.
        activations: per fused level, float32 `[N, 1, H/s, W/s]` >= 0: mean absolute value of the fused feature.
    """

    outputs: list[NDArray[np.float32]]
    weights: list[NDArray[np.float32]]
    activations: list[NDArray[np.float32]]

    @classmethod
    def from_arrays(cls, arrays: Sequence[NDArray[np.float32]]) -> Inspection:
        """Splits all outputs of an exported file, in its order."""
        fused = len(FUSED_STRIDES)
        return cls(list(arrays[: -2 * fused]), list(arrays[-2 * fused : -fused]), list(arrays[-fused:]))

    def fusion(self) -> list[NDArray[np.float32]]:
        """Returns weights and activations in the order of `inspection_shapes`."""
        return [*self.weights, *self.activations]


@runtime_checkable
class InspectableBackend(Backend, Protocol):
    """A backend that can return the fusion weights and activations too."""

    def check_inspectable(self) -> None:
        """Raises InputError (ModelError for a file) if the model cannot be inspected, with the reason and the remedy."""

    def inspect(self, images: NDArray[Any]) -> Inspection:
        """Runs the model as `infer` does, with all inspection outputs; raises as `check_inspectable`."""
