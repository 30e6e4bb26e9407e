"""Reads videos as far as they can be decoded, and writes them whole or not at all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Callable, Optional

import cv2
import numpy as np

from runtime.errors import InputError, OutputError
from runtime.files import PathLike, atomic_write
from runtime.ops.image import Image
from runtime.ops.preprocess import fit, resize

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
_MP4_PARTS = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx", b"styp"})


def read_video(path: PathLike, *, strict: bool = False) -> Generator[Image, None, None]:
    """Yields the frames of a video, uint8 BGR `[H, W, 3]`; of a truncated one those that can be decoded, with a warning.

    Args:
        path: the file.
        strict: raise after the last frame of one that is cut short.

    Raises:
        InputError: it cannot be opened or has no frame; or it is cut short and `strict`.

    Example:
        >>> for frame in read_video("film.mp4"):
        ...     print(frame.shape)
        (64, 128, 3)
        (64, 128, 3)
    """
    capture = cv2.VideoCapture(str(path))
    try:
        count = 0
        while True:
            good, frame = capture.read()
            if not good:
                break
            count += 1
            yield np.asarray(frame, np.uint8)
        promised, rate = _frame_count(capture), _frame_rate(capture)
    finally:
        capture.release()
    if not count:
        reason = "cut short, nothing of it can be decoded" if is_cut(path) else "not a video that can be decoded"
        raise InputError(f"{path}: {reason}")
    # Where a file does not hold the number of its frames, it is told from its length, which may be that of a longer sound.
    if is_cut(path) or promised - count > rate:
        of = f"{count} of {promised}" if promised > count else count
        problem = f"{path}: the video is cut short or damaged; {of} frames could be decoded, the last one perhaps in part"
        if strict:
            raise InputError(problem)
        log.warning("%s", problem)


def frame_rate(path: PathLike) -> float:
    """Reads the frames per second of a video; 25 where the file does not say."""
    with _opened(path) as capture:
        return _frame_rate(capture)


def frame_count(path: PathLike) -> Optional[int]:
    """Reads the number of frames that a video claims, which may be an estimate; None where it claims none."""
    with _opened(path) as capture:
        return _frame_count(capture) or None


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(str(path))
    try:
        yield capture
    finally:
        capture.release()


def _frame_rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if np.isfinite(rate) and 0 < rate <= 1000 else 25.0


def _frame_count(capture: cv2.VideoCapture) -> int:
    """Reads a property of a video; 0 where the file does not say."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if np.isfinite(count) and 0 < count < 1e9 else 0


def is_cut(path: PathLike) -> bool:
    """True if a file is shorter than it claims. Known for .mp4 and its kin, .avi, .mkv and .webm; others count as whole.

    FFmpeg decodes what is there and mends the rest, so that a missing end shows in no frame for sure.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            position = 0
            while position < size:
                file.seek(position)
                length = _part_length(file.read(24))
                if length is None:
                    return False
                position += length
            return position > size
    except OSError:
        return False


def _part_length(head: bytes) -> Optional[int]:
    """Reads the length in bytes of the part of a file that begins with `head`, if it is of a known kind."""
    if head[:4] == b"RIFF" and len(head) >= 8:
        return 8 + int.from_bytes(head[4:8], "little")
    if head[4:8] in _MP4_PARTS:
        short, long = int.from_bytes(head[:4], "big"), int.from_bytes(head[8:16], "big")
        length = long if short == 1 else short
        return length if length >= 8 else None  # 0: as far as the file goes
    if head[:4] in (b"\x1aE\xdf\xa3", b"\x18S\x80g") and len(head) > 4:  # EBML's header, Matroska's segment
        width = 9 - head[4].bit_length()
        length = int.from_bytes(head[4 : 4 + width], "big") - (1 << 7 * width)
        return 4 + width + length if length < (1 << 7 * width) - 1 else None  # all ones: not known
    return None


@contextlib.contextmanager
def write_video(path: PathLike, rate: float) -> Iterator[Callable[[Image], None]]:
    """Yields a function that appends a uint8 BGR frame to an .mp4 of `rate` frames per second, written whole or not at all.

    A frame of another size than the first is fitted into that, with a black border.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_write(path) as temporary:
        writer = _Writer(temporary, rate)
        try:
            yield writer.add
        finally:
            writer.close()
        # OpenCV says nothing of a frame that did not reach the disk.
        if frame_count(temporary) != writer.count:
            raise OutputError(
                f"cannot write {path}: the disk is full, or OpenCV cannot encode these frames; choose another output"
            )


class _Writer:
    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._size = (0, 0)
        self._writer: Optional[cv2.VideoWriter] = None
        self.count = 0

    def add(self, frame: Image) -> None:
        height, width = frame.shape[:2]
        if self._writer is None:
            self._size = height, width
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*"mp4v"), self._rate, (width, height))
        if (height, width) != self._size:
            frame = resize(frame, fit(width, height, self._size, "letterbox"), self._size, pad_value=0)
        self._writer.write(frame)
        self.count += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
