"""Draws text in scripts that OpenCV's font lacks, by Pillow and a font that the extra `fonts` installs (Noto Sans CJK)."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from runtime.ops.image import Image

_PACKAGE, _FILE, _FACE = "noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc", 2  # 2: the forms of simplified Chinese
_PIXELS = 30  # of size 1, at which its capitals are as high as those of OpenCV's font
_UNASSIGNED = "\U0010fffd"  # shown as any other character that the font lacks


def can_write(text: str) -> bool:
    """True if the font is installed and has all characters of a text."""
    return _font(_PIXELS) is not None and all(_has(character) for character in text)


@functools.lru_cache(maxsize=16)
def _font(pixels: int) -> Any:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    try:
        from PIL import ImageFont

        return ImageFont.truetype(str(Path(found.submodule_search_locations[0]) / _FILE), pixels, index=_FACE)
    except (ImportError, OSError):
        return None


@functools.lru_cache(maxsize=4096)
def _has(character: str) -> bool:
    font = _font(_PIXELS)
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask(_UNASSIGNED))


def bounds(text: str, size: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a text in pixels, seen from where its base line begins."""
    left, top, right, bottom = _font(max(round(size * _PIXELS), 1)).getbbox(text, anchor="ls")
    return int(left), int(top), int(right), int(bottom)


def write(canvas: Image, text: str, corner: tuple[int, int], size: float, color: tuple[int, int, int]) -> None:
    """Writes a text that `can_write` into `canvas`, in place; arguments as of `runtime.viz.canvas.write`."""
    from PIL import Image as PillowImage
    from PIL import ImageDraw

    left, top, right, bottom = bounds(text, size)
    mask = PillowImage.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(mask).text((-left, -top), text, 255, _font(max(round(size * _PIXELS), 1)), anchor="ls")
    x, y = corner[0] + left, corner[1] + top
    part = canvas[max(y, 0) : max(y + mask.height, 0), max(x, 0) : max(x + mask.width, 0)]
    opacity = np.asarray(mask, np.float32)[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1], None] / 255
    part[:] = np.round(part + (np.array(color, np.float32) - part) * opacity).astype(np.uint8)
