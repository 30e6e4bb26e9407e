"""Parses and decodes JPEG files. What follows the image in a file, such as the video of a motion photo, is not looked at."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple, Optional

import numpy as np

from runtime.components import load_if_installed
from runtime.ops.image import Image

START = b"\xff\xd8"
MOST_SCANS = 50
"""Of an image: each is decoded over all its pixels, so that a small file could take hours. Encoders write up to about 15."""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that give the size
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # markers without a length
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # the first marker that is no restart
_DAMAGE = re.compile(r"premature end|bad (Huffman|arithmetic) code|found marker|extraneous bytes before marker 0xd[0-7]", re.I)
_EXTRA = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


class Segment(NamedTuple):
    """A part of a file.

    Attributes:
        marker: its kind, 0xC0-0xFE.
        content: its bytes without the length; of a scan its header alone.
        end: offset of what follows; of a scan, behind its data.
    """

    marker: int
    content: bytes
    end: int


def segments(data: bytes) -> Iterator[Segment]:
    """Yields the segments of the first image in a file, the last one is its end marker.

    Raises:
        ValueError: the file ends before.
    """
    offset = len(START)
    while True:
        offset = data.find(b"\xff", offset)  # bytes between segments are skipped, as decoders do
        if not 0 <= offset < len(data) - 1:
            raise ValueError("the end is missing")
        marker = data[offset + 1]
        if marker == _END:
            yield Segment(marker, b"", offset + 2)
            return
        if marker == 0xFF or marker in _ALONE:
            offset += 1 if marker == 0xFF else 2
            continue
        stop = offset + 2 + max(int.from_bytes(data[offset + 2 : offset + 4], "big"), 2)
        content = data[offset + 4 : stop]
        if stop > len(data):
            raise ValueError("the end is missing")
        if marker == _SCAN:
            found = _AFTER_SCAN.search(data, stop)
            if not found:
                raise ValueError("the end is missing")
            stop = found.end() - 2
        yield Segment(marker, content, stop)
        offset = stop


def scan_count(data: bytes) -> int:
    """Returns the number of scans of an image that has an end marker; 0 for one that has none."""
    try:
        return [segment.marker for segment in segments(data)].count(_SCAN)
    except ValueError:
        return 0


def size(data: bytes) -> tuple[int, int]:
    """Reads (width, height) in pixels. Raises ValueError where there are none."""
    for marker, content, _ in segments(data):
        if marker in _FRAMES and len(content) >= 5:
            return int.from_bytes(content[3:5], "big"), int.from_bytes(content[1:3], "big")
    raise ValueError("no size")


def exif(data: bytes) -> Optional[bytes]:
    """Returns the EXIF data, which has the form of a TIFF file; None where there is none."""
    for marker, content, _ in segments(data):
        if marker in _FRAMES:
            break  # it would come before
        if marker == _APP1 and content.startswith(b"Exif\0"):
            return content[6:]
    return None


def decode(data: bytes) -> Optional[Image]:
    """Decodes into uint8 BGR `[H, W, 3]`, not turned; None for kinds that another decoder is to try (CMYK and rare ones).

    OpenCV hides the warnings of libjpeg, which say that the data are damaged; this is the same libjpeg without that. Without
    simplejpeg every kind is left to OpenCV.

    Raises:
        ValueError: the data of a scan are damaged.
    """
    simplejpeg = load_if_installed("simplejpeg")
    if simplejpeg is None:
        return None
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, "BGR", strict=True), np.uint8)
    except (ValueError, MemoryError) as error:
        message = str(error)
    extra = _EXTRA.search(message)
    if _DAMAGE.search(message) or (extra and not _is_harmless(data, int(extra[1]), int(extra[2], 16))):
        raise ValueError(message)
    if not extra:
        return None
    with contextlib.suppress(ValueError):
        return np.asarray(simplejpeg.decode_jpeg(data, "BGR", strict=False), np.uint8)
    return None


def _is_harmless(data: bytes, count: int, marker: int) -> bool:
    """True if bytes that a decoder skipped before a marker are not those of a scan.

    Some cameras fill up the end of a scan with one value, while what is left of a damaged scan is varied.
    """
    ends = [segment.end for segment in segments(data) if segment.marker == _SCAN and data[segment.end + 1] == marker]
    return not ends or any(len(set(data[max(end - count, 0) : end])) <= 1 for end in ends)
