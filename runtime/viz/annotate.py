"""Draws detections on an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Optional

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.ops.image import Image
from runtime.viz.canvas import Color, class_label, text_size, write
from runtime.viz.label_layout import Rectangle, free_spot

_GOLDEN = 0.618034  # steps of the golden ratio keep neighboring class ids far apart in hue


def class_color(class_id: int) -> Color:
    """A steady, saturated BGR color for a class id."""
    red, green, blue = colorsys.hsv_to_rgb((0.05 + class_id * _GOLDEN) % 1, 0.8, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw(
    image: Image,
    found: Detections,
    class_names: Sequence[str],
    colors: Optional[Sequence[Color]] = None,
    with_scores: bool = True,
) -> Image:
    """Draws boxes and labels on a copy of an image, the best detection on top.

    Labels do not cover each other: the best detections choose their place first, and one that finds none has no label.

    Args:
        image: uint8 BGR `[H, W, 3]`.
        found: detections in pixels of the image, best first.
        class_names: by class id.
        colors: BGR, one a detection; by default that of its class.
        with_scores: false for labels of the class alone.

    Returns:
        uint8 BGR `[H, W, 3]`.
    """
    colors = [class_color(class_id) for class_id in found.class_ids.tolist()] if colors is None else colors
    canvas = image.copy()
    size = canvas.shape[1], canvas.shape[0]
    unit = max(min(size) / 480, 0.6)
    thickness, font_scale = max(round(2 * unit), 1), 0.5 * unit
    boxes = [tuple(round(value) for value in box) for box in found.boxes.tolist()]
    for (left, top, right, bottom), color in reversed(list(zip(boxes, colors))):
        last = min(right, size[0] - 1), min(bottom, size[1] - 1)  # pixels end where their index plus 1 is
        cv2.rectangle(canvas, (left, top), last, color, thickness, cv2.LINE_AA)
    taken: list[Rectangle] = []
    for box, score, class_id, color in zip(boxes, found.scores, found.class_ids.tolist(), colors):
        text = class_label(class_names[class_id], class_id) + (f" {score:.2f}" if with_scores else "")
        width, height, depth = text_size(text, font_scale)
        spot = free_spot(box, width + 2, height + depth, size, taken)
        if spot:
            taken.append(spot)
            _draw_label(canvas, text, spot, depth, color, font_scale)
    return canvas


def _draw_label(canvas: Image, text: str, spot: Rectangle, depth: int, color: Color, font_scale: float) -> None:
    left, top, right, bottom = (int(value) for value in spot)
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.114, 0.587, 0.299)) > 110 else (255, 255, 255)
    write(canvas, text, (left + 1, bottom - depth // 2 - 1), font_scale, ink)
