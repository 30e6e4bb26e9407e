"""Defines the image array that everything works on."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError

Image = NDArray[np.uint8]
"""uint8 BGR `[H, W, 3]`."""

MAX_PIXELS = 1 << 28
"""Most pixels of an image: 16384 x 16384, 0.8 GB. OpenCV crashes on some larger ones."""


def check_image(image: Optional[NDArray[Any]]) -> Image:
    """Returns the image; raises InputError unless it is uint8 `[H, W, 3]` of 1 to `MAX_PIXELS` pixels."""
    if image is None:
        raise InputError(
            "image: expected uint8 BGR [H, W, 3], got None; cv2.imread returns None where the file is missing or no image"
        )
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image: expected uint8 BGR [H, W, 3], got {found}")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise InputError(
            f"image: {image.shape[1]}x{image.shape[0]}, at most {MAX_PIXELS // 10**6} million pixels are taken;"
            " scale it down, or cut it into parts"
        )
    return image
