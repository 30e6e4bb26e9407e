"""Reads and writes images. Every image enters through `read_image`, as uint8 BGR `[H, W, 3]`."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from runtime.errors import InputError, OutputError
from runtime.files import PathLike, atomic_write
from runtime.media.image_header import claimed_size
from runtime.ops.image import Image

MAX_PIXELS = 1 << 28
"""Most pixels of an image that is read: 16384 x 16384, 0.8 GB, twice that while it is decoded. (Kinds of files that are not
in `IMAGE_SUFFIXES` have OpenCV's own bound, four times that.)"""
_LARGEST_FILE = 8 * MAX_PIXELS  # four channels of 16 bits, not compressed


def read_image(path: PathLike, size: Optional[tuple[int, int]] = None) -> Image:
    """Reads any common image (gray, CMYK, alpha, 16 bit) as uint8 BGR `[H, W, 3]`, EXIF orientation applied.

    Args:
        path: the file.
        size: (width, height) in pixels that an annotation gives for the image. Annotations are sometimes made on the
            image as stored, before the EXIF rotation; where only that frame fits `size`, the image is left unrotated.

    Raises:
        InputError: missing, empty, truncated or not an image, of more than `MAX_PIXELS`, or of another size than `size`.
    """
    data = _read(path)
    if not data:
        raise InputError(f"{path}: the file is empty")
    if _is_truncated(data):
        raise InputError(f"{path}: the image is truncated")
    _check_size(path, data)
    image = _decode(path, data, cv2.IMREAD_COLOR)
    if size is not None and (image.shape[1], image.shape[0]) != size:
        stored = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if (stored.shape[1], stored.shape[0]) != size:
            raise InputError(
                f"{path}: the image is {image.shape[1]}x{image.shape[0]} but its annotation says {size[0]}x{size[1]}"
            )
        image = stored
    return image


def _read(path: PathLike) -> bytes:
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: cannot be read (not a file)")
        if status.st_size > _LARGEST_FILE:
            raise InputError(f"{path}: the file has {status.st_size / 1e9:.1f} GB, at most {_LARGEST_FILE / 1e9:.1f} are read")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _check_size(path: PathLike, data: bytes) -> None:
    """Raises InputError for an image whose header claims a size too large to be decoded."""
    try:
        width, height = claimed_size(data) or (1, 1)
    except ValueError as error:
        raise InputError(f"{path}: not an image that can be decoded ({error})") from error
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path}: the image is {width}x{height}, at most {MAX_PIXELS // 10**6} million pixels are read;"
            " scale it down, or cut it into parts"
        )


def _decode(path: PathLike, data: bytes, flags: int) -> Image:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(f"{path}: the image cannot be decoded ({error.err})") from error
    if image is None:
        raise InputError(f"{path}: not an image that can be decoded")
    return np.asarray(image, dtype=np.uint8)


def _is_truncated(data: bytes) -> bool:
    """True if a JPEG or PNG lacks its end, which OpenCV silently fills with gray.

    Inside a JPEG scan every 0xFF is followed by a stuffed zero, so the last start-of-scan marker is a real one, and a
    whole file has an end-of-image marker after it (the one of an embedded thumbnail comes before).
    """
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" not in data  # the empty end chunk with its checksum; garbage may follow it
    return False


def write_image(path: PathLike, image: Image) -> None:
    """Writes a uint8 BGR image, whole or not at all; the suffix chooses the format."""
    try:
        encoded, data = cv2.imencode(Path(path).suffix, image)
    except cv2.error as error:
        raise OutputError(f"cannot write {path}: {error.err}", is_single=True) from error
    if not encoded:
        height, width = image.shape[:2]
        raise OutputError(
            f"cannot write {path}: OpenCV cannot encode this image of {width}x{height} as {Path(path).suffix}", is_single=True
        )
    with atomic_write(path) as temporary:  # not cv2.imwrite, which reports success for a BMP cut short by a full disk
        temporary.write_bytes(data.tobytes())
