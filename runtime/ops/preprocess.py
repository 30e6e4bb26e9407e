"""From an image to the network's input and back: the only resize and the only normalization in the project."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.media.image import Image
from runtime.ops import boxes as box_ops
from runtime.spec import ModelSpec


@dataclass(frozen=True)
class Geometry:
    """How an image was placed in the network's input: x_input = x * scale_x + pad_x, likewise y (continuous pixel edges).

    Attributes:
        width, height: of the original image in pixels.
        resized_width, resized_height: what it covers in the input.
        pad_x, pad_y: pixels of border left of it and above it.
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
        """`[N, 4]` xyxy from original pixels to input pixels, float32."""
        return (boxes * np.array(self.scale * 2, np.float32) + self._pad()).astype(np.float32)

    def to_original(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """`[N, 4]` xyxy from input pixels to original pixels, clipped to the image, float32."""
        original = np.divide(boxes - self._pad(), np.array(self.scale * 2, np.float32))
        return box_ops.clip(original, self.width, self.height).astype(np.float32)

    def _pad(self) -> NDArray[np.float32]:
        return np.array([self.pad_x, self.pad_y] * 2, np.float32)


def fit(width: int, height: int, input_size: tuple[int, int], resize: str) -> Geometry:
    """Where a `width` x `height` image goes in an input of (height, width) `input_size`.

    `stretch` fills the input; `letterbox` keeps the aspect ratio and centers. At least one pixel remains in each direction.
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
    """Place a uint8 image `[h, w, 3]` in an input of (height, width) `input_size`, bilinearly; uint8 `[H, W, 3]`."""
    size = (geometry.resized_width, geometry.resized_height)
    resized = image if size == (geometry.width, geometry.height) else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    if size == (input_size[1], input_size[0]):
        return np.asarray(resized, np.uint8)
    canvas = np.full((*input_size, 3), round(pad_value), np.uint8)
    canvas[geometry.pad_y : geometry.pad_y + size[1], geometry.pad_x : geometry.pad_x + size[0]] = resized
    return canvas


def normalization(spec: ModelSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per channel, float32 `[3]` each: what is subtracted from a pixel value, and what the difference is divided by."""
    return np.multiply(spec.mean, 255).astype(np.float32), np.multiply(spec.std, 255).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _tables(spec: ModelSpec) -> NDArray[np.float32]:
    """The normalized value of each of the 256 pixel values, float32 `[3, 256]`."""
    offset, scale = normalization(spec)
    result: NDArray[np.float32] = (np.arange(256, dtype=np.float32) - offset[:, None]) / scale[:, None]
    return result


def normalize(image: Image, spec: ModelSpec) -> NDArray[np.float32]:
    """uint8 BGR `[H, W, 3]` to the network's float32 `[3, H, W]`: color order, `(x / 255 - mean) / std`, planes.

    It is computed in float32 as `(x - 255 mean) / (255 std)`, which a graph can do just so, by a table look-up per channel.
    """
    planes = cv2.split(image)
    ordered = planes[::-1] if spec.color == "rgb" else planes
    out = np.empty((3, *image.shape[:2]), np.float32)
    for plane, table, target in zip(ordered, _tables(spec), out):
        cv2.LUT(plane, table, dst=target)
    return out


def as_input(image: Image, spec: ModelSpec) -> NDArray[Any]:
    """uint8 BGR `[H, W, 3]` of the model's input size as the model takes it, `spec.input_shape` of `spec.input_type`."""
    if spec.input_type == "uint8":
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if spec.color == "rgb" else image
    return normalize(image, spec)


def preprocess(image: Image, spec: ModelSpec) -> tuple[NDArray[Any], Geometry]:
    """A uint8 BGR image `[h, w, 3]` as the model's input, see `as_input`, and how to get boxes back."""
    geometry = fit(image.shape[1], image.shape[0], spec.input_size, spec.resize)
    return as_input(resize(image, geometry, spec.input_size, spec.pad_value), spec), geometry
