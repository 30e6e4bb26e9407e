"""Connects to RTSP, HTTP and other network streams by PyAV, with a time-out for every wait.

The user names the address, so FFmpeg may connect; it may read no file, so that a playlist from elsewhere cannot name one.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

from runtime.errors import InputError
from runtime.media.ffmpeg import import_av
from runtime.media.live.address import LiveAddress
from runtime.media.live.connection import Connection, Shot
from runtime.media.video import FILE_FORMATS, Progress, check_frame_size, decode_frames, upright
from runtime.ops.image import Image

_OPTIONS = {
    "format_whitelist": f"{FILE_FORMATS},rtsp,rtp,sdp,hls,mpjpeg",
    "protocol_whitelist": "rtsp,rtsps,rtp,srtp,rtcp,rtmp,rtmps,http,https,httpproxy,tls,tcp,udp,srt,crypto",
    "rtsp_flags": "prefer_tcp",  # UDP loses packets, and many networks let none through
    "analyzeduration": "2000000",  # microseconds until the first frame; FFmpeg takes 5 seconds
}
_SHORTEST_WAIT = 0.1  # seconds, below which PyAV would not wait at all


@contextlib.contextmanager
def connect(address: LiveAddress, timeout: float) -> Iterator[Connection]:
    """Opens a network stream while the block runs.

    Args:
        address: of the stream.
        timeout: longest wait for the connection, and for the next frame, in seconds.

    Raises:
        InputError: it cannot be opened, or has no video.
    """
    av = import_av()
    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(
                av.open(address.address, "r", container_options=dict(_OPTIONS), timeout=(timeout, max(timeout, _SHORTEST_WAIT)))
            )
            video = container.streams.best("video")
        except (av.FFmpegError, OSError, ValueError) as error:
            # Not `from error`, which quotes the address with its password.
            raise InputError(f"cannot be opened ({_reason(error, timeout)})") from None
        if video is None or video.codec_context is None:
            raise InputError("it has no video that can be decoded")
        check_frame_size(address.title, video.width, video.height)
        # Some files state no duration, WebM from a browser for one; a server says how long those are, in bytes.
        is_endless = container.duration is None and container.size <= 0
        is_live = is_endless or not address.address.lower().startswith("http")
        video.thread_type = "SLICE" if is_live else "AUTO"  # frames decoded side by side come later
        yield Connection(_live(container, video, timeout) if is_live else _stored(container), is_live)


def _live(container: Any, video: Any, timeout: float) -> Iterator[Shot]:
    """Yields frames as they come, goes on after those that cannot be decoded."""
    av = import_av()
    last = time.monotonic()
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:
            raise InputError(_reason(error, timeout)) from None
        if packet is None:
            return
        try:
            frames = video.codec_context.decode(packet) if packet.size else []
        except av.FFmpegError:
            frames = []
        for frame in frames:
            yield functools.partial(upright, frame), None  # most of a stream's frames are dropped on a slow machine
            last = time.monotonic()
        if time.monotonic() - last > timeout:
            raise InputError(f"no frame that can be decoded for {timeout:g} s")


def _stored(container: Any) -> Iterator[Shot]:
    """Yields the frames of a video file with their times."""
    progress = Progress()
    for image, stated in decode_frames(container, progress):
        yield functools.partial(_same, image), progress.count_frame(stated, container)
    if progress.is_damaged:
        raise InputError(f"cut short or damaged after {progress.count} frames")


def _same(image: Image) -> Image:
    return image


def _reason(error: Exception, timeout: float) -> str:
    """Says why a connection failed, without the address, which may hold a password."""
    if isinstance(error, import_av().error.ExitError):
        return f"no answer for {timeout:g} s"
    return getattr(error, "strerror", None) or type(error).__name__
