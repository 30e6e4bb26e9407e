"""Writes videos, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, Callable

from runtime.console import signals
from runtime.errors import ItemError
from runtime.files import PathLike, atomic_write
from runtime.media.ffmpeg import import_av
from runtime.ops.image import Image
from runtime.ops.preprocess import fit, resize

_TICKS = 60_000  # of the time stamps in a second: whole for the usual rates, and few enough for MPEG-4
_ONE_FRAME = _TICKS // 25  # length of a video of one frame
_QUALITY = 3 * 118  # quantizer 3 of 1-31, in FFmpeg's unit


@contextlib.contextmanager
def write_video(path: PathLike) -> Iterator[Callable[[Image, float], None]]:
    """Yields a function that appends a uint8 BGR frame and its time in seconds to an .mp4, written whole or not at all.

    Each frame is shown until the time of the next, the last one as long as the others on average. A frame of another size than
    the first is fitted into that, with a black border.

    Raises:
        OutputError: it cannot be written.
    """
    av = import_av()
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        writer = _Writer(av, file, path)
        try:
            yield writer.add
            writer.finish()
        finally:
            writer.abandon()


class _Writer:
    """Encoder and container of one file, opened by the first frame, which gives the size."""

    def __init__(self, av: Any, file: BinaryIO, name: PathLike) -> None:
        self._av, self._file, self._name = av, file, name
        self._container: Any = None
        self._last, self._count = -1, 0

    def add(self, frame: Image, time: float) -> None:
        height, width = frame.shape[:2]
        if self._container is None:
            with self._encoding():
                self._open(height, width)
        if (height, width) != self._size:
            frame = resize(frame, fit(width, height, self._size, "letterbox"), self._size, pad_value=0)
        image = self._av.VideoFrame.from_ndarray(frame, format="bgr24")
        self._last, self._count = max(round(time * _TICKS), self._last + 1), self._count + 1
        image.pts, image.time_base = self._last, Fraction(1, _TICKS)
        self._write(image)

    def _open(self, height: int, width: int) -> None:
        self._size = height, width
        self._container = self._av.open(self._file, "w", format="mp4")
        self._stream = self._container.add_stream("mpeg4", options={"flags": "+qscale", "global_quality": str(_QUALITY)})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)

    def _write(self, image: Any) -> None:
        with self._encoding():
            for packet in self._stream.encode(image):
                # Counts for the last one alone: the next one's time ends the others.
                packet.duration = round(self._last / (self._count - 1)) if self._count > 1 else _ONE_FRAME
                self._container.mux(packet)

    def finish(self) -> None:
        """Writes what is left and the index."""
        if self._container is None:
            raise ItemError(f"cannot write {self._name}: there are no frames")
        self._write(None)
        container, self._container = self._container, None
        with self._encoding():
            container.close()
        self._file.flush()

    @contextlib.contextmanager
    def _encoding(self) -> Iterator[None]:
        try:
            with signals.held():  # FFmpeg writes by a callback, which swallows what they raise
                yield
        except (self._av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            message = f"cannot write {self._name}: FFmpeg cannot encode these frames ({reason})"
            raise ItemError(message) from error

    def abandon(self) -> None:
        """Frees what an unfinished file holds."""
        if self._container is not None:
            with signals.held(), contextlib.suppress(self._av.FFmpegError, OSError, ValueError):
                self._container.close()
