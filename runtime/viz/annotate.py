"""Detections drawn on an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Optional

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.media.image import Image

Color = tuple[int, int, int]

_GOLDEN = 0.618034  # steps of the golden ratio keep neighboring class ids far apart in hue


def class_color(class_id: int) -> Color:
    """A steady, saturated BGR color for a class id."""
    red, green, blue = colorsys.hsv_to_rgb((0.05 + class_id * _GOLDEN) % 1, 0.8, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw(image: Image, found: Detections, class_names: Sequence[str], colors: Optional[Sequence[Color]] = None) -> Image:
    """A copy of a uint8 BGR image `[H, W, 3]` with boxes and labels, the best detection on top.

    Args:
        colors: BGR, of each detection; by default its class's.
    """
    colors = [class_color(class_id) for class_id in found.class_ids.tolist()] if colors is None else colors
    canvas = image.copy()
    unit = max(min(image.shape[:2]) / 480, 0.6)
    thickness, font_scale = max(round(2 * unit), 1), 0.5 * unit
    for box, score, class_id, color in reversed(list(zip(found.boxes, found.scores, found.class_ids.tolist(), colors))):
        left, top, right, bottom = (round(float(value)) for value in box)
        last = min(right, image.shape[1] - 1), min(bottom, image.shape[0] - 1)  # pixels end where their index plus 1 is
        cv2.rectangle(canvas, (left, top), last, color, thickness, cv2.LINE_AA)
        _label(canvas, f"{class_names[class_id]} {score:.2f}", (left, top), color, font_scale)
    return canvas


def _label(canvas: Image, text: str, corner: tuple[int, int], color: Color, font_scale: float) -> None:
    """A filled tag above `corner`, moved inside the image where there is no room."""
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font_scale, 1)
    left = max(min(corner[0], canvas.shape[1] - width - 2), 0)
    bottom = max(corner[1], height + baseline)
    cv2.rectangle(canvas, (left, bottom - height - baseline), (left + width + 2, bottom), color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.114, 0.587, 0.299)) > 110 else (255, 255, 255)
    cv2.putText(canvas, text, (left + 1, bottom - baseline // 2 - 1), cv2.FONT_HERSHEY_SIMPLEX, font_scale, ink, 1, cv2.LINE_AA)
