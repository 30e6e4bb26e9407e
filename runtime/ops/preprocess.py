"""Resizes and normalizes images to the network's input, and maps boxes back to the image."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.ops import boxes as box_ops
from runtime.ops.image import Image
from runtime.spec import ModelSpec


@dataclass(frozen=True)
class Geometry:
    """Placement of an image in the network's input.

    x_input = x * scale_x + pad_x, likewise y, in continuous coordinates: pixel k covers [k, k + 1].

    Attributes:
        width: of the original image in pixels.
        height: of the original image in pixels.
        resized_width: of the image in the input, in pixels.
        resized_height: of the image in the input, in pixels.
        pad_x: border left of it in pixels.
        pad_y: border above it in pixels.
    """

    width: int
    height: int
    resized_width: int
    resized_height: int
    pad_x: int
    pad_y: int

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per original pixel, (x, y)."""
        return self.resized_width / self.width, self.resized_height / self.height

    def to_input(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps `[N, 4]` xyxy from original pixels to input pixels, float32."""
        return (boxes * np.array(self.scale * 2, np.float32) + self._pad()).astype(np.float32)

    def to_original(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps `[N, 4]` xyxy from input pixels to original pixels, clipped to the image, float32."""
        original = np.divide(boxes - self._pad(), np.array(self.scale * 2, np.float32))
        return box_ops.clip(original, self.width, self.height).astype(np.float32)

    def _pad(self) -> NDArray[np.float32]:
        return np.array([self.pad_x, self.pad_y] * 2, np.float32)


def fit(width: int, height: int, input_size: tuple[int, int], resize: str) -> Geometry:
    """Places an image in the network's input.

    `stretch` fills the input; `letterbox` keeps the aspect ratio and centers. Each side keeps at least one pixel.

    Args:
        width: of the image in pixels.
        height: of the image in pixels.
        input_size: (height, width) of the input in pixels.
        resize: `letterbox` or `stretch`.
    """
    input_height, input_width = input_size
    if resize == "stretch":
        return Geometry(width, height, input_width, input_height, 0, 0)
    scale = min(input_width / width, input_height / height)
    resized_width = min(max(round(width * scale), 1), input_width)
    resized_height = min(max(round(height * scale), 1), input_height)
    return Geometry(
        width, height, resized_width, resized_height, (input_width - resized_width) // 2, (input_height - resized_height) // 2
    )


def resize(image: Image, geometry: Geometry, input_size: tuple[int, int], pad_value: float) -> Image:
    """Resizes an image bilinearly and pads it to the input size.

    Args:
        image: uint8 `[h, w, 3]`.
        geometry: from `fit`.
        input_size: (H, W) in pixels.
        pad_value: gray level of the border, 0-255.

    Returns:
        uint8 `[H, W, 3]`.
    """
    size = (geometry.resized_width, geometry.resized_height)
    resized = image if size == (geometry.width, geometry.height) else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    if size == (input_size[1], input_size[0]):
        return np.asarray(resized, np.uint8)
    canvas = np.full((*input_size, 3), round(pad_value), np.uint8)
    canvas[geometry.pad_y : geometry.pad_y + size[1], geometry.pad_x : geometry.pad_x + size[0]] = resized
    return canvas


def normalization(spec: ModelSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns offset and scale of pixel values, float32 `[3]` each: a normalized value is `(pixel - offset) / scale`."""
    return np.multiply(spec.mean, 255).astype(np.float32), np.multiply(spec.std, 255).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _tables(spec: ModelSpec) -> NDArray[np.float32]:
    """Normalizes each of the 256 pixel values, float32 `[3, 256]`."""
    offset, scale = normalization(spec)
    result: NDArray[np.float32] = (np.arange(256, dtype=np.float32) - offset[:, None]) / scale[:, None]
    return result


def normalize(image: Image, spec: ModelSpec) -> NDArray[np.float32]:
    """Normalizes uint8 BGR `[H, W, 3]` to float32 `[3, H, W]` in the color order of the model: `(x / 255 - mean) / std`.

    Computed in float32 as `(x - 255 mean) / (255 std)` by a table look-up per channel: the same bits as in a graph.
    """
    planes = cv2.split(image)
    ordered = planes[::-1] if spec.color == "rgb" else planes
    out = np.empty((3, *image.shape[:2]), np.float32)
    for plane, table, target in zip(ordered, _tables(spec), out):
        cv2.LUT(plane, table, dst=target)
    return out


def as_input(image: Image, spec: ModelSpec) -> NDArray[Any]:
    """Converts uint8 BGR `[H, W, 3]` of the input size to what the model takes: `spec.input_shape` of `spec.input_type`."""
    if spec.input_type == "uint8":
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if spec.color == "rgb" else image
    return normalize(image, spec)


def preprocess(image: Image, spec: ModelSpec) -> tuple[NDArray[Any], Geometry]:
    """Converts a uint8 BGR image `[h, w, 3]` to the model's input, see `as_input`; returns its geometry too."""
    geometry = fit(image.shape[1], image.shape[0], spec.input_size, spec.resize)
    return as_input(resize(image, geometry, spec.input_size, spec.pad_value), spec), geometry
