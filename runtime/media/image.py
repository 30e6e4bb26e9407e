"""Reads and writes images. Every image enters through `decode_image`, as uint8 BGR `[H, W, 3]`."""

from __future__ import annotations

import functools
import logging
import os
import stat
from pathlib import Path
from typing import Any, Optional, Union

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError, ItemError
from runtime.files import PathLike, atomic_write
from runtime.media import image_header as header
from runtime.media import jpeg
from runtime.ops.image import MAX_PIXELS, Image, check_image

log = logging.getLogger(__name__)

ImageLike = Union[NDArray[Any], PathLike, None]
"""An image, or the path of its file; as wide as the stubs of `cv2.imread`, whose result may be of any dtype, or None."""

_TURNS: dict[int, tuple[bool, Optional[int]]] = {
    1: (False, None),
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}
"""Of each EXIF orientation: whether rows and columns change places, and then OpenCV's code of a flip."""
LARGEST_FILE = 8 * MAX_PIXELS
"""Most bytes of an image file: four channels of 16 bits, not compressed."""


def as_image(image: ImageLike) -> Image:
    """Reads an image that is given by its path; checks one that is not. Raises InputError as `read_image`, `check_image`."""
    return read_image(image) if isinstance(image, (str, os.PathLike)) else check_image(image)


def read_image(path: PathLike, size: Optional[tuple[int, int]] = None) -> Image:
    """Reads any common image (gray, CMYK, alpha, 16 bit) as uint8 BGR `[H, W, 3]`, EXIF orientation applied.

    Of an animation or a file of several pages the first one is read, with a warning.

    Args:
        path: the file.
        size: (width, height) in pixels that an annotation gives for the image. Annotations are sometimes made on the
            image as stored, before the EXIF rotation; where only that frame fits `size`, the image is left unrotated.

    Raises:
        InputError: missing, empty, damaged or not an image, of more than `MAX_PIXELS`, or of another size than `size`; or a
            raw photo, of which only a preview could be read.
    """
    return decode_image(_read(path), path, size)


def decode_image(
    data: bytes, path: PathLike, size: Optional[tuple[int, int]] = None, *, most_pixels: Optional[int] = None
) -> Image:
    """Decodes the bytes of an image file as `read_image` does.

    Args:
        data: the file's content.
        path: what errors call it.
        size: see `read_image`.
        most_pixels: refuse images of more than these before they are decoded, and kinds whose size is not known before.

    Raises:
        InputError: see `read_image`.
    """
    if len(data) > LARGEST_FILE:
        raise _too_large(path, len(data))
    _check_whole(path, data)
    _check_size(path, data, most_pixels)
    _check_is_the_image(path, data)
    stored = _decode(path, data)
    image = _turned(stored, header.orientation(data))
    if size is not None and (image.shape[1], image.shape[0]) != size:
        if (stored.shape[1], stored.shape[0]) != size:
            raise InputError(
                f"{path}: the image is {image.shape[1]}x{image.shape[0]} but its annotation says {size[0]}x{size[1]}"
            )
        image = stored
    if header.has_more_frames(data):
        _warn_of_more_frames(str(path))
    return image


def _read(path: PathLike) -> bytes:
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: cannot be read (not a file)")
        if status.st_size > LARGEST_FILE:
            raise _too_large(path, status.st_size)
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _too_large(path: PathLike, length: int) -> InputError:
    return InputError(f"{path}: the file has {length / 1e9:.1f} GB, at most {LARGEST_FILE / 1e9:.1f} are read")


def _check_size(path: PathLike, data: bytes, most_pixels: Optional[int]) -> None:
    """Raises InputError for an image whose header claims a size too large to be decoded."""
    try:
        claimed = header.claimed_size(data)
    except ValueError as error:
        raise InputError(f"{path}: not an image that can be decoded ({error})") from error
    if claimed is None and most_pixels is not None:
        raise InputError(f"{path}: not an image of a kind that is taken: JPEG, PNG, WebP, BMP, TIFF, GIF, PPM or PGM")
    width, height = claimed or (1, 1)
    most = min(most_pixels or MAX_PIXELS, MAX_PIXELS)
    if width * height > most:
        raise InputError(
            f"{path}: the image is {width}x{height}, at most {most / 10**6:.3g} million pixels are read;"
            " scale it down, or cut it into parts"
        )


def _check_whole(path: PathLike, data: bytes) -> None:
    """Raises InputError for an empty file, and for a JPEG or PNG without its end, which OpenCV silently fills with gray."""
    if not data:
        raise InputError(f"{path}: the file is empty")
    if data.startswith(jpeg.START):
        scans = jpeg.scan_count(data)
        if scans > jpeg.MOST_SCANS:
            raise InputError(f"{path}: a JPEG of {scans} scans, at most {jpeg.MOST_SCANS} are read; save it anew")
        is_whole = scans > 0
    elif data.startswith(b"\x89PNG"):
        is_whole = any(kind == b"IEND" for kind, *_ in header.png_chunks(data))
    else:
        return
    if not is_whole:
        raise InputError(f"{path}: the image is truncated")


def _check_is_the_image(path: PathLike, data: bytes) -> None:
    """Raises InputError where decoders would return something else than the image that viewers show."""
    if header.is_preview(data):
        raise InputError(f"{path}: a raw photo, of which only a preview can be read; convert it to JPEG or PNG first")
    if header.is_turned_avif(data):
        raise InputError(f"{path}: an AVIF that is stored turned, which is not read; save it as JPEG or PNG")


def _decode(path: PathLike, data: bytes) -> Image:
    """Decodes an image as it is stored, not turned."""
    try:
        image: Optional[cv2.typing.MatLike] = jpeg.decode(data) if data.startswith(jpeg.START) else None
        if image is None:
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            image = cv2.imdecode(np.frombuffer(header.without_orientation(data), np.uint8), flags)
    except cv2.error as error:
        raise InputError(f"{path}: the image cannot be decoded ({error.err})") from error
    except ValueError as error:
        raise InputError(f"{path}: the image is damaged ({error})") from error
    if image is None:
        raise InputError(f"{path}: not an image that can be decoded")
    return np.asarray(image, dtype=np.uint8)


def _turned(image: Image, orientation: int) -> Image:
    is_transposed, flip = _TURNS[orientation]
    turned = cv2.transpose(image) if is_transposed else image
    return np.asarray(turned if flip is None else cv2.flip(turned, flip), np.uint8)


@functools.lru_cache(maxsize=4096)  # once a file, however often it is read
def _warn_of_more_frames(path: str) -> None:
    log.warning("%s: of its several frames or pages the first one is read", path)


def write_image(path: PathLike, image: Image) -> None:
    """Writes a uint8 BGR image, whole or not at all; the suffix chooses the format."""
    try:
        encoded, data = cv2.imencode(Path(path).suffix, image)
    except cv2.error as error:
        raise ItemError(f"cannot write {path}: {error.err}") from error
    if not encoded:
        height, width = image.shape[:2]
        raise ItemError(f"cannot write {path}: OpenCV cannot encode this image of {width}x{height} as {Path(path).suffix}")
    with atomic_write(path) as temporary:  # not cv2.imwrite, which reports success for a BMP cut short by a full disk
        temporary.write_bytes(data.tobytes())
