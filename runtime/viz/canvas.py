"""Draws text and arranges images side by side, for annotated images, figures and plots. All images are uint8 BGR."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from runtime.components import load_if_installed
from runtime.ops.image import Image
from runtime.viz import glyphs

Color = tuple[int, int, int]
"""BGR, 0-255."""

PAPER: Color = (250, 250, 250)
INK: Color = (40, 40, 40)
FAINT: Color = (110, 110, 110)
GAP, MARGIN = 14, 24  # pixels between parts, and around all of them
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def paper(width: int, height: int) -> Image:
    """An empty canvas, `[height, width, 3]`."""
    return np.full((height, width, 3), PAPER, np.uint8)


def write(canvas: Image, text: str, corner: tuple[int, int], size: float, color: Color) -> None:
    """Writes text of any script into `canvas`, in place; in Latin letters where no installed font has it.

    Args:
        canvas: uint8 BGR image.
        text: what to write.
        corner: (x, y) in pixels where its base line begins.
        size: 1 is about 22 pixels high.
        color: BGR.
    """
    text = _legible(text)
    if text.isascii():
        cv2.putText(canvas, text, corner, _FONT, size, color, 1, cv2.LINE_AA)
    else:
        glyphs.write(canvas, text, corner, size, color)


def text_size(text: str, size: float) -> tuple[int, int, int]:
    """(width, height above the base line, depth below it) in pixels that `write` needs; the width is at least 1."""
    text = _legible(text)
    (width, height), depth = cv2.getTextSize(text if text.isascii() else "H", _FONT, size, 1)
    if not text.isascii():
        _, top, width, bottom = glyphs.bounds(text, size)
        height, depth = max(height, -top), max(depth, bottom)
    return max(width, 1), height, depth


def class_label(name: str, class_id: int) -> str:
    """A class's name as it is drawn: with its id if it has to be written in another script, where two could look the same."""
    shown = _legible(name)
    return shown if shown == name else f"{shown} #{class_id}"


@functools.lru_cache(maxsize=4096)
def _legible(text: str) -> str:
    """The text itself where it can be drawn, else its transliteration into ASCII."""
    if text.isascii() or glyphs.can_write(text):
        return text
    library = load_if_installed("anyascii")
    return str(library.anyascii(text)) if library else text.encode("ascii", "replace").decode()


def shorten(text: str, size: float, width: int) -> str:
    """Cuts a text so that it is at most `width` pixels wide; two dots stand for what is gone."""
    if text_size(text, size)[0] <= width:
        return text
    end = len(text)
    while end and text_size(text[:end] + "..", size)[0] > width:
        end -= 1
    return text[:end] + ".."


def upwards(text: str, size: float, color: Color) -> Image:
    """An image of a text that reads from bottom to top."""
    width, height, depth = text_size(text, size)
    label = paper(width, height + depth)
    write(label, text, (0, height), size, color)
    return np.ascontiguousarray(np.rot90(label))


def paste(canvas: Image, part: Image, left: int, top: int) -> None:
    """Copies an image into `canvas`, in place."""
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part


def titled(title: str, subtitle: str, body: Image) -> Image:
    """Puts a title of two lines above a figure, and a margin around both."""
    head = paper(max(body.shape[1], text_size(title, 0.7)[0], text_size(subtitle, 0.5)[0]), 52)
    write(head, title, (0, 20), 0.7, INK)
    write(head, subtitle, (0, 45), 0.5, FAINT)
    return pad(stack([head, body], gap=GAP))


def beside(parts: Sequence[Image], gap: int = GAP) -> Image:
    """Puts images from left to right, aligned at the top."""
    turned = [part.transpose(1, 0, 2) for part in parts]
    return np.ascontiguousarray(stack(turned, gap).transpose(1, 0, 2))


def stack(parts: Sequence[Image], gap: int) -> Image:
    """Puts images from top to bottom, aligned at the left."""
    width = max(part.shape[1] for part in parts)
    canvas = paper(width, sum(part.shape[0] for part in parts) + gap * (len(parts) - 1))
    top = 0
    for part in parts:
        canvas[top : top + part.shape[0], : part.shape[1]] = part
        top += part.shape[0] + gap
    return canvas


def pad(image: Image) -> Image:
    """Adds a margin around an image."""
    height, width = image.shape[:2]
    canvas = paper(width + 2 * MARGIN, height + 2 * MARGIN)
    canvas[MARGIN : MARGIN + height, MARGIN : MARGIN + width] = image
    return canvas
