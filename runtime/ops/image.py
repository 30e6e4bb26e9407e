"""Defines the image array that everything works on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError

Image = NDArray[np.uint8]
"""uint8 BGR `[H, W, 3]`."""


def check_image(image: Image) -> Image:
    """Returns the image; raises InputError unless it is uint8 `[H, W, 3]` and not empty."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image: expected uint8 BGR [H, W, 3], got {found}")
    return image
