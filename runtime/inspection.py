"""How a model with ASFF fused its levels: further outputs of a model, and what they say of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.backend import Backend
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.images import Image
from runtime.preprocess import Geometry, preprocess
from runtime.spec import level_name

FUSED_STRIDES = (32, 16, 8)
"""Of the levels that ASFF fuses, coarsest first: levels 1, 2, 3 of the paper. Also the order of a weight map's channels."""


def inspection_shapes(input_size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    """The further outputs of an exported file, in order, and each one's (channels, height, width).

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
    """What a model computed for a batch, coarsest level first.

    Attributes:
        maps: per output level, as `Backend.infer` returns them.
        weights: per fused level, float32 `[N, 3, H/s, W/s]` in [0, 1]: the shares of levels 5, 4, 3 in it, their sum 1.
        activations: per fused level, float32 `[N, 1, H/s, W/s]` >= 0: mean absolute value of the fused feature.
    """

    maps: list[NDArray[np.float32]]
    weights: list[NDArray[np.float32]]
    activations: list[NDArray[np.float32]]

    @classmethod
    def from_arrays(cls, arrays: Sequence[NDArray[np.float32]]) -> Inspection:
        """The inverse of `arrays`."""
        fused = len(FUSED_STRIDES)
        return cls(list(arrays[: -2 * fused]), list(arrays[-2 * fused : -fused]), list(arrays[-fused:]))

    def arrays(self) -> list[NDArray[np.float32]]:
        """All of them in the order of an exported file's outputs: maps, weights, activations."""
        return [*self.maps, *self.weights, *self.activations]


@runtime_checkable
class InspectableBackend(Backend, Protocol):
    """A backend that can also tell how the levels were fused."""

    def check_inspectable(self) -> None:
        """Raise InputError (ModelError for a file) if this model cannot be inspected: why, and what to do."""

    def inspect(self, images: NDArray[np.float32]) -> Inspection:
        """As `infer`, with the fusion's weights and activations; raises as `check_inspectable`."""


@dataclass(frozen=True, eq=False)
class View:
    """One picture, what was found in it, and how the levels were fused where the picture is.

    Attributes:
        picture: uint8 BGR `[h, w, 3]`.
        found: the detections, best first. levels: int64 `[N]`, index into the spec's strides of what made each.
        weights: per fused level, float32 `[3, h', w']` in [0, 1], and
        activations: per fused level, float32 `[h', w']` >= 0, both over exactly the picture (no border), in input pixels.
    """

    picture: Image
    found: Detections
    levels: NDArray[np.int64]
    weights: list[NDArray[np.float32]]
    activations: list[NDArray[np.float32]]


def look(detector: Detector, backend: InspectableBackend, picture: Image) -> View:
    """Run a model on one uint8 BGR picture `[h, w, 3]`.

    Args:
        detector: of this very backend; its thresholds choose the detections.
    """
    planes, geometry = preprocess(picture, backend.spec)
    seen = backend.inspect(np.repeat(planes[None], backend.batch_size or 1, axis=0))
    found, levels = detector.trace([level[0] for level in seen.maps], geometry)
    return View(
        picture,
        found,
        levels,
        [np.stack([over_picture(share, geometry, backend.spec.input_size) for share in level[0]]) for level in seen.weights],
        [over_picture(level[0, 0], geometry, backend.spec.input_size) for level in seen.activations],
    )


def over_picture(cells: NDArray[np.float32], geometry: Geometry, input_size: tuple[int, int]) -> NDArray[np.float32]:
    """A map float32 `[H/s, W/s]` over the input, as what lies over the picture in it: `[resized height, resized width]`."""
    height, width = input_size
    pixels = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
    top, left = geometry.pad_y, geometry.pad_x
    return np.asarray(pixels[top : top + geometry.resized_height, left : left + geometry.resized_width], np.float32)
