"""Collects the detections and fusion maps of one image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.backends.inspection import InspectableBackend
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.ops.image import Image
from runtime.ops.preprocess import Geometry, preprocess


@dataclass(frozen=True, eq=False)
class View:
    """Detections and fusion maps of one image.

    Attributes:
        image: uint8 BGR `[h, w, 3]`.
        found: the detections, best first.
        levels: int64 `[N]`, the level of each detection, an index into the spec's strides.
        weights: per fused level, float32 `[3, h', w']` in [0, 1]: alpha, beta, gamma, in input pixels without the border.
        activations: per fused level, float32 `[h', w']` >= 0, in input pixels without the border.
    """

    image: Image
    found: Detections
    levels: NDArray[np.int64]
    weights: list[NDArray[np.float32]]
    activations: list[NDArray[np.float32]]


def look(detector: Detector, backend: InspectableBackend, image: Image) -> View:
    """Runs a model on one image.

    Args:
        detector: a detector of `backend`; its thresholds choose the detections.
        backend: the model.
        image: uint8 BGR `[h, w, 3]`.
    """
    prepared, geometry = preprocess(image, backend.spec)
    seen = backend.inspect(np.repeat(prepared[None], backend.batch_size or 1, axis=0))
    found, levels = detector.select(detector.candidates([output[0] for output in seen.outputs]), geometry)
    return View(
        image,
        found,
        levels,
        [np.stack([over_image(share, geometry, backend.spec.input_size) for share in level[0]]) for level in seen.weights],
        [over_image(level[0, 0], geometry, backend.spec.input_size) for level in seen.activations],
    )


def over_image(cells: NDArray[np.float32], geometry: Geometry, input_size: tuple[int, int]) -> NDArray[np.float32]:
    """Crops a map over the input, float32 `[H/s, W/s]`, to the image in it: `[resized height, resized width]`."""
    height, width = input_size
    pixels = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
    top, left = geometry.pad_y, geometry.pad_x
    return np.asarray(pixels[top : top + geometry.resized_height, left : left + geometry.resized_width], np.float32)
