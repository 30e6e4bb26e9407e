"""Drawing on paper: the texts and the arrangement that figures and plots share. Every part is a uint8 BGR image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from runtime.media.image import Image
from runtime.viz.annotate import Color

PAPER: Color = (250, 250, 250)
INK: Color = (40, 40, 40)
FAINT: Color = (110, 110, 110)
GAP, MARGIN = 14, 24  # pixels between parts, and around all of them


def paper(width: int, height: int) -> Image:
    """An empty part."""
    return np.full((height, width, 3), PAPER, np.uint8)


def write(canvas: Image, text: str, corner: tuple[int, int], size: float, color: Color) -> None:
    """Write ASCII text into `canvas`; `corner` (x, y) is where its base line begins, `size` 1 is some 22 pixels high."""
    cv2.putText(canvas, text, corner, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)


def text_width(text: str, size: float) -> int:
    """Pixels that `write` needs, at least 1."""
    return max(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0], 1)


def beside(parts: Sequence[Image], gap: int = GAP) -> Image:
    """Parts from left to right, aligned at the top."""
    turned = [part.transpose(1, 0, 2) for part in parts]
    return np.ascontiguousarray(stack(turned, gap).transpose(1, 0, 2))


def stack(parts: Sequence[Image], gap: int) -> Image:
    """Parts from top to bottom, aligned at the left."""
    width = max(part.shape[1] for part in parts)
    canvas = paper(width, sum(part.shape[0] for part in parts) + gap * (len(parts) - 1))
    top = 0
    for part in parts:
        canvas[top : top + part.shape[0], : part.shape[1]] = part
        top += part.shape[0] + gap
    return canvas


def pad(image: Image) -> Image:
    """A margin around it."""
    height, width = image.shape[:2]
    canvas = paper(width + 2 * MARGIN, height + 2 * MARGIN)
    canvas[MARGIN : MARGIN + height, MARGIN : MARGIN + width] = image
    return canvas
