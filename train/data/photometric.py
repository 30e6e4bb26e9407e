"""Applies photometric jitter in uint8: brightness and contrast in one look-up table, saturation and hue in HSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.ops.image import Image

_NEUTRAL = (0.0, 1.0, 1.0, 0.0)


class Tables(NamedTuple):
    """A drawn jitter; None where there is nothing to do.

    Attributes:
        plain: uint8 `[256]`, for all three channels.
        colored: uint8 `[1, 256, 3]`, for hue, saturation and value.
    """

    plain: Image | None
    colored: Image | None


def draw_tables(
    probability: float,
    brightness: float,
    contrast: tuple[float, float],
    saturation: tuple[float, float],
    hue: float,
    rng: np.random.Generator,
) -> Tables:
    """Draws each of the four jitters with `probability`; the ranges are those of `AugmentConfig`."""
    ranges = ((-brightness, brightness), contrast, saturation, (-hue, hue))
    shift, gain, colorfulness, turn = _draw(ranges, probability, rng)
    levels = np.arange(256, dtype=np.float64)
    plain, colored = None, None
    if shift or gain != 1:
        plain = _to_bytes((levels + shift) * gain)
    if round(turn) or colorfulness != 1:
        # OpenCV's 8-bit hue counts from 0 to 179.
        tables = [_to_bytes((levels + round(turn)) % 180), _to_bytes(levels * colorfulness), _to_bytes(levels)]
        colored = np.stack(tables, axis=1)[None]
    return Tables(plain, colored)


def _draw(ranges: tuple[tuple[float, float], ...], probability: float, rng: np.random.Generator) -> Iterator[float]:
    for (least, most), neutral in zip(ranges, _NEUTRAL):
        yield rng.uniform(least, most) if rng.random() < probability else neutral


def _to_bytes(values: NDArray[np.float64]) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def jitter(image: Image, tables: Tables) -> Image:
    """Applies a drawn jitter to a uint8 BGR image `[H, W, 3]`; a new image, or `image` itself if there is nothing to do."""
    if tables.plain is not None:
        image = np.asarray(cv2.LUT(image, tables.plain), np.uint8)
    if tables.colored is not None:
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), tables.colored)
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)
    return image
