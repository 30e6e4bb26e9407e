"""Reads what the header of an image file says of it: size, orientation, frames, and that it is a mere preview.

OpenCV bounds sizes too (`OPENCV_IO_MAX_IMAGE_PIXELS`), but takes its bound once, when cv2 is first imported: set from here it
would not hold for a program that imports cv2 before this package. Orientations it applies to some kinds and not to others.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Optional

from runtime.media import jpeg, tiff

PNG_START = b"\x89PNG\r\n\x1a\n"
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P[1-6Ff]" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})\s")
_DNG_VERSION = 50706
_AVIF_HEAD = 1 << 14  # bytes in which the properties of an image lie
_FAULTS = (struct.error, ValueError, IndexError, KeyError)


def claimed_size(data: bytes) -> Optional[tuple[int, int]]:
    """Reads (width, height) in pixels from the header of a JPEG, PNG, BMP, WebP, TIFF, GIF or PNM file; None for other kinds.

    Raises:
        ValueError: the header is damaged.
    """
    try:
        return _claimed_size(data)
    except _FAULTS as error:
        raise ValueError("its header is damaged") from error


def _claimed_size(data: bytes) -> Optional[tuple[int, int]]:
    if data.startswith(jpeg.START):
        return jpeg.size(data)
    if data.startswith(b"\x89PNG"):
        return _pair(">II", data, 16)
    if data.startswith(b"BM"):
        width, height = _pair("<HH" if _number("<I", data, 14) == 12 else "<ii", data, 18)
        return width, abs(height)  # negative: the rows run downwards
    if data.startswith(b"GIF8"):
        return _pair("<HH", data, 6)
    if _is_webp(data):
        return _webp(data)
    if data.startswith(tiff.MARKS):
        first = tiff.Tiff(data).first
        return first.fields[tiff.WIDTH].values[0], first.fields[tiff.HEIGHT].values[0]
    found = _PNM.match(data)
    return (int(found[1]), int(found[2])) if found else None


def _number(layout: str, data: bytes, offset: int) -> int:
    return int(struct.unpack_from(layout, data, offset)[0])


def _pair(layout: str, data: bytes, offset: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, data, offset)
    return first, second


def _is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = _number("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = _pair("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def orientation(data: bytes) -> int:
    """Reads the EXIF orientation, 1-8, of a JPEG, PNG, WebP or TIFF file; 1 where there is none or it is damaged."""
    found = _orientation_field(data)
    return found.values[0] if found and 1 <= found.values[0] <= 8 else 1


def _orientation_field(data: bytes) -> Optional[tiff.Field]:
    try:
        content = _exif(data)
        if content is None or not content.startswith(tiff.MARKS):
            return None
        return tiff.Tiff(content).first.fields.get(tiff.ORIENTATION)
    except _FAULTS:
        return None


def _exif(data: bytes) -> Optional[bytes]:
    if data.startswith(tiff.MARKS):
        return data
    if data.startswith(jpeg.START):
        return jpeg.exif(data)
    if data.startswith(PNG_START):
        return next((data[start:end] for kind, start, end in png_chunks(data) if kind == b"eXIf"), None)
    if _is_webp(data):
        found = next((content for kind, content in _riff_chunks(data) if kind == b"EXIF"), b"")
        return found[6:] if found.startswith(b"Exif\0\0") else found
    return None


def without_orientation(data: bytes) -> bytes:
    """Returns a TIFF file with the orientation 1, since OpenCV turns such files unasked; other files as they are."""
    found = _orientation_field(data) if data.startswith(tiff.MARKS) else None
    if found is None or orientation(data) == 1:
        return data
    value = b"\1\0" if data.startswith(b"II") else b"\0\1"
    return data[: found.place] + value + data[found.place + 2 :]


def is_preview(data: bytes) -> bool:
    """True if the image that decoders find in a file is but a preview of another one in it, as in most raw photos."""
    if not data.startswith(tiff.MARKS):
        return False
    try:
        file = tiff.Tiff(data)
        first = file.first
        parts = [other for other, is_page in file.others() if not is_page]
        is_raw = data[8:10] == b"CR" or _DNG_VERSION in first.fields
        return is_raw or first.is_reduced or any(part.pixels > first.pixels for part in parts)
    except _FAULTS:
        return False


def is_turned_avif(data: bytes) -> bool:
    """True for an AVIF file whose image is to be turned or mirrored, by a property that OpenCV ignores."""
    head = data[:_AVIF_HEAD] if data[4:8] == b"ftyp" else b""
    return b"imir" in head or any(angle[0] & 3 for angle in re.findall(rb"\0\0\0\x09irot(.)", head, re.DOTALL))


def has_more_frames(data: bytes) -> bool:
    """True for an animated GIF, WebP, PNG or AVIF, and for a TIFF of several pages."""
    try:
        if data.startswith(b"GIF8"):
            return _has_two_gif_frames(data)
        if data.startswith(PNG_START):
            return any(kind == b"acTL" and _number(">I", data, start) > 1 for kind, start, _ in png_chunks(data))
        if _is_webp(data):
            return [kind for kind, _ in _riff_chunks(data)].count(b"ANMF") > 1
        if data.startswith(tiff.MARKS):
            return any(is_page and not other.is_reduced for other, is_page in tiff.Tiff(data).others())
        return data[4:12] == b"ftypavis"
    except _FAULTS:
        return False


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, where its content starts and ends) of each chunk of a PNG file that is there in full."""
    start = len(PNG_START) + 8
    while start + 4 <= len(data):
        kind, end = data[start - 4 : start], start + int.from_bytes(data[start - 8 : start - 4], "big")
        if end + 4 > len(data):  # its checksum comes behind it
            return
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end + 12


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 12
    while offset + 8 <= len(data):
        length = int.from_bytes(data[offset + 4 : offset + 8], "little")
        yield data[offset : offset + 4], data[offset + 8 : offset + 8 + length]
        offset += 8 + length + length % 2


def _has_two_gif_frames(data: bytes) -> bool:
    offset = 13 + _color_table(data[10])
    frames = 0
    while frames < 2:
        kind = data[offset]
        if kind == 0x2C:  # a frame: position, size, flags, colors, code size, then blocks
            frames += 1
            offset += 11 + _color_table(data[offset + 9])
        elif kind == 0x21:
            offset += 2
        else:
            return False
        while data[offset]:
            offset += 1 + data[offset]
        offset += 1
    return True


def _color_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
