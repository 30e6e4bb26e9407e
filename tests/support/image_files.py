"""Encoded images, and what their orientation means."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

needs_gif = pytest.mark.skipif(not cv2.haveImageWriter("a.gif"), reason="this OpenCV knows no GIF; 4.11 does")

# What each EXIF orientation asks for, as a transformation of the stored pixels.
ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def encode(suffix: str, image: np.ndarray, *options: int) -> bytes:
    good, data = cv2.imencode(suffix, image, list(options))
    assert good
    return data.tobytes()
