"""Reads the size that an image file claims, so that one too large for memory is refused before it is decoded.

OpenCV bounds sizes too (`OPENCV_IO_MAX_IMAGE_PIXELS`), but takes its bound once, when cv2 is first imported: set from here it
would not hold for a program that imports cv2 before this package.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Optional

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that give the size
_JPEG_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})  # markers without a length
_TIFF_KINDS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of whole numbers
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P[1-6Ff]" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})\s")


def claimed_size(data: bytes) -> Optional[tuple[int, int]]:
    """Reads (width, height) in pixels from the header of a JPEG, PNG, BMP, WebP, TIFF, GIF or PNM file; None for other kinds.

    Raises:
        ValueError: the header is damaged.
    """
    try:
        return _claimed_size(data)
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise ValueError("its header is damaged") from error


def _claimed_size(data: bytes) -> Optional[tuple[int, int]]:
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG"):
        return _pair(">II", data, 16)
    if data.startswith(b"BM"):
        width, height = _pair("<HH" if _number("<I", data, 14) == 12 else "<ii", data, 18)
        return width, abs(height)  # negative: the rows run downwards
    if data.startswith(b"GIF8"):
        return _pair("<HH", data, 6)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith((b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")):
        return _tiff(data)
    found = _PNM.match(data)
    return (int(found[1]), int(found[2])) if found else None


def _number(layout: str, data: bytes, offset: int) -> int:
    return int(struct.unpack_from(layout, data, offset)[0])


def _pair(layout: str, data: bytes, offset: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, data, offset)
    return first, second


def _jpeg(data: bytes) -> tuple[int, int]:
    offset = 2
    while True:
        offset = data.index(b"\xff", offset)  # bytes between segments are skipped, as decoders do
        marker = data[offset + 1]
        if marker == 0xFF:
            offset += 1
        elif marker in _JPEG_ALONE:
            offset += 2
        elif marker in _JPEG_FRAMES:
            height, width = _pair(">HH", data, offset + 5)
            return width, height
        else:
            offset += 2 + _number(">H", data, offset + 2)


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = _number("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = _pair("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(data: bytes) -> tuple[int, int]:
    order = "<" if data.startswith(b"II") else ">"
    is_big = b"+" in data[:4]
    directory = _number(f"{order}Q" if is_big else f"{order}I", data, 8 if is_big else 4)
    count, entry, start = ("Q", "HHQ", directory + 8) if is_big else ("H", "HHI", directory + 2)
    length = struct.calcsize(f"={entry}") + (8 if is_big else 4)
    sides: dict[int, int] = {}
    for index in range(_number(order + count, data, directory)):
        offset = start + index * length
        tag, kind, _ = struct.unpack_from(order + entry, data, offset)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT):
            value: Any = _number(order + _TIFF_KINDS[kind], data, offset + struct.calcsize(f"={entry}"))
            sides[tag] = max(value, sides.get(tag, 0))
    return sides[_TIFF_WIDTH], sides[_TIFF_HEIGHT]
