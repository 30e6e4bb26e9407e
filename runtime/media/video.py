"""Reads videos as far as they can be decoded, by PyAV, which holds FFmpeg.

FFmpeg never sees a file's name: it is handed an open file, may reach no other, and knows only kinds of files that hold their
own images. So neither a name nor a playlist in a file makes it connect to a network or read something else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Optional

import numpy as np

from runtime.console import signals
from runtime.errors import InputError
from runtime.files import PathLike
from runtime.media.ffmpeg import import_av
from runtime.media.video_end import is_cut
from runtime.ops.image import MAX_PIXELS, Image

log = logging.getLogger(__name__)

FILE_FORMATS = (
    "3g2,3gp,av1,asf,avi,dv,flv,gxf,h264,hevc,ivf,live_flv,m4a,m4v,matroska,mj2,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu"
    ",ogg,rm,vc1,vvc,webm,wtv,yuv4mpegpipe"
)
_OPTIONS = {"format_whitelist": FILE_FORMATS, "protocol_whitelist": "none"}
_HUGE = 1 << 25  # pixels; of such frames only one is decoded at a time
_STATE_LENGTH = frozenset({"asf", "avi", "flv", "matroska,webm"})  # in their head, so that a missing end shows
_USUAL_RATE = 25.0
_LONGEST_GAP = 3600.0  # seconds; a larger step between frames is a fault of the time stamps
_SLACK = 1.0  # seconds that a stated length may be off


class Frame(NamedTuple):
    """One image of a video.

    Attributes:
        image: uint8 BGR `[H, W, 3]`, upright.
        time: seconds since the first frame; larger than that of the frame before.
    """

    image: Image
    time: float


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
    frames = read_frames(path, strict=strict)
    with contextlib.closing(frames):
        for frame in frames:
            yield frame.image


def read_frames(path: PathLike, *, strict: bool = False) -> Generator[Frame, None, None]:
    """Yields the frames of a video with their times. Otherwise as `read_video`."""
    with _opened(path) as container:
        progress = Progress()
        for image, time in decode_frames(container, progress) if container else ():
            yield Frame(image, progress.count_frame(time, container))
        promised = _promised_frames(container) if container else None
        is_short = container is not None and _is_short(container, progress)
    if not progress.count:
        reason = "cut short, nothing of it can be decoded" if is_cut(path) else "not a video that can be decoded"
        raise InputError(f"{path}: {reason}")
    if is_short or progress.is_damaged or is_cut(path):
        of = f"{progress.count} of {promised}" if promised and promised > progress.count else progress.count
        problem = f"{path}: the video is cut short or damaged; {of} frames could be decoded, the last one perhaps in part"
        if strict:
            raise InputError(problem)
        log.warning("%s", problem)


def frame_count(path: PathLike) -> Optional[int]:
    """Reads the number of frames that a video claims, which may be an estimate; None where it claims none."""
    with _opened(path) as container:
        return _promised_frames(container) if container else None


@dataclass
class Progress:
    """How far a video was read.

    Attributes:
        count: frames so far.
        end: of the last packet of any stream, in seconds.
        is_damaged: a frame after the first could not be decoded.
    """

    count: int = 0
    end: float = -math.inf
    is_damaged: bool = False
    _first: float = 0.0
    _last: float = 0.0

    def count_frame(self, time: Optional[float], container: Any) -> float:
        """Counts a frame; returns its time in seconds since the first, made up where the file has none that can be right."""
        if self.count == 0:
            self._first = time or 0.0
        elif time is None or not 0 < time - self._first - self._last < _LONGEST_GAP:
            now = self._last + 1 / _rate(container)
            self._first, self._last = (self._first if time is None else time - now), now
        else:
            self._last = time - self._first
        self.count += 1
        return self._last


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[Any]:
    """Yields PyAV's container of a file; None where it has no video that FFmpeg can read."""
    av = import_av()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_open_file(path))
        try:
            with signals.held():  # FFmpeg reads by a callback, which swallows what they raise
                container = stack.enter_context(av.open(_File(file), "r", container_options=dict(_OPTIONS)))
            stream = container.streams.best("video")
        except (av.FFmpegError, OSError, ValueError):
            container = stream = None
        if stream is not None and stream.codec_context is None:
            stream = None  # of an unknown codec
        if stream is not None:
            check_frame_size(path, stream.width, stream.height)
            stream.thread_type = "AUTO" if stream.width * stream.height < _HUGE else "SLICE"
        yield container if stream is not None else None


def _open_file(path: PathLike) -> BinaryIO:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"{path}: cannot be read (not a file)")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


class _File:
    """A file whose `seek` answers -1 for a place that cannot be, as FFmpeg expects; damaged files name such places."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def check_frame_size(path: PathLike, width: int, height: int) -> None:
    """Raises InputError for frames that are too large. FFmpeg itself allocates none of more than 2**28 pixels."""
    if width * height > MAX_PIXELS:
        most = MAX_PIXELS // 10**6
        raise InputError(f"{path}: the frames are {width}x{height}, at most {most} million pixels are read")


def decode_frames(container: Any, progress: Progress) -> Iterator[tuple[Image, Optional[float]]]:
    """Yields images and times; goes on after what cannot be decoded, as players do."""
    errors = import_av().FFmpegError
    stream = container.streams.best("video")
    packets = container.demux()
    while True:
        try:
            with signals.held():
                packet = next(packets, None)
        except (errors, OSError):
            progress.is_damaged = progress.count > 0
            packet = None
        if packet is not None and packet.pts is not None:
            progress.end = max(progress.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet is not None and (packet.stream_index != stream.index or (packet.size == 0 and packet.dts is not None)):
            continue  # of the sound, or an empty one, by which some files say that the frame before stays
        if packet is not None and packet.size == 0:
            packet = None  # the end
        try:
            for frame in stream.codec_context.decode(packet):
                yield upright(frame), None if frame.pts is None else float(frame.pts * stream.time_base)
        except errors:
            progress.is_damaged = progress.count > 0
        if packet is None:
            return


def upright(frame: Any) -> Image:
    """Converts PyAV's frame to uint8 BGR `[H, W, 3]`, rotation applied."""
    image: Image = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4)) if frame.rotation % 360 else image


def _rate(container: Any) -> float:
    """Reads the frames per second; the usual where the file does not say."""
    rate = float(container.streams.best("video").average_rate or 0)
    return rate if 0 < rate <= 1000 else _USUAL_RATE


def _promised_frames(container: Any) -> Optional[int]:
    stream = container.streams.best("video")
    estimate = round(container.duration / 1e6 * float(stream.average_rate)) if container.duration and stream.average_rate else 0
    return (stream.frames or estimate) if 0 < (stream.frames or estimate) < 1e9 else None


def _is_short(container: Any, progress: Progress) -> bool:
    """True if the file states a length that none of its streams reaches."""
    if container.format.name not in _STATE_LENGTH or not container.duration:
        return False
    return bool(progress.end < container.duration / 1e6 - _SLACK)
