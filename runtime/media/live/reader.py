"""Reads cameras and network streams: the newest frame, connected again when lost, in bounded memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Callable, NamedTuple, Optional

from runtime.errors import InputError
from runtime.media.live.address import LiveAddress
from runtime.media.live.camera import open_camera
from runtime.media.live.connection import Connection, Shot
from runtime.media.live.network import connect
from runtime.ops.image import Image

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a lost connection is tried again, and the most to which each failure doubles them."""

_STEADY = 10.0  # seconds, after which a connection that is lost again starts over with the first pause
_GRACE = 5.0  # seconds that a wait may take beyond its time-out, before the thread that waits is given up
_LONGEST_STOP = 2.0  # seconds to wait for the reading thread, which may sit in a time-out


class LiveFrame(NamedTuple):
    """One frame of a camera or stream.

    Attributes:
        image: uint8 BGR `[H, W, 3]`, upright.
        number: counts all frames that came, also those that were dropped; from 0.
        received: when it came, in seconds since 1970 (UTC).
        time: seconds since the first frame; larger than that of the frame before.
    """

    image: Image
    number: int
    received: float
    time: float


def read_live(address: LiveAddress, *, timeout: float = 10.0, retry: float = 60.0) -> Generator[LiveFrame, None, None]:
    """Yields the newest frame each time one is asked for; older ones that nobody asked for meanwhile are dropped.

    A thread reads and decodes, and holds one frame. A stream that is lost, stalls or ends is connected again, with pauses that
    grow. Of a video file on an HTTP server every frame is yielded, and its end is the end.

    Args:
        address: of the camera or stream.
        timeout: seconds without a frame after which the connection counts as lost.
        retry: seconds without a frame after which a lost connection is given up; 0 tries once, infinity never gives up.

    Raises:
        InputError: it cannot be opened the first time, or is given up.
    """
    reader = _Reader(address, timeout, retry)
    try:
        reader.start()
        while True:
            frame = reader.next_frame()
            if frame is None:
                return
            yield frame
    finally:
        reader.stop()


class _Reader:
    """The thread that reads, and the one frame that it holds."""

    def __init__(self, address: LiveAddress, timeout: float, retry: float) -> None:
        self._address, self._timeout, self._retry = address, timeout, retry
        self._news = threading.Condition()
        self._waiting: Optional[tuple[Shot, int, float, float]] = None
        self._is_over = self._is_stopped = False
        self._error: Optional[BaseException] = None
        self._count, self._first, self._last = 0, 0.0, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end, and waits until it has closed the connection, or has long waited for it."""
        with self._news:
            self._is_stopped, self._waiting = True, None
            self._news.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_LONGEST_STOP)

    def next_frame(self) -> Optional[LiveFrame]:
        """Waits for a frame newer than the last; None at the end."""
        with self._news:
            while self._waiting is None and not self._is_over:
                self._news.wait(1.0)
                if time.monotonic() - self._last > self._timeout + self._retry + _GRACE:
                    raise InputError(
                        f"{self._address.title}: no frame for {time.monotonic() - self._last:.0f} s, and no answer"
                    )
            waiting, self._waiting = self._waiting, None
            self._news.notify_all()
        if waiting is None:
            if self._error is not None:
                raise self._error
            return None
        (make_image, stated), number, received, arrived = waiting
        return LiveFrame(make_image(), number, received, arrived if stated is None else stated)

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # whatever it is, the user of the frames is the one to know
            self._error = error
        with self._news:
            self._is_over = True
            self._news.notify_all()

    def _read(self) -> None:
        open_it: Callable[..., AbstractContextManager[Connection]] = open_camera if self._address.is_camera else connect
        pause, is_told, is_live = FIRST_PAUSE, False, True
        while not self._is_stopped:
            start, before = time.monotonic(), self._count
            try:
                with open_it(self._address, self._timeout) as connection:
                    is_live = connection.is_live
                    for shot in connection.shots:
                        if self._count == before and is_told:
                            log.warning("%s: connected again", self._address.title)
                            is_told = False
                        if not self._put(shot, is_live):
                            return
                    if not is_live:
                        return
                reason = "it ended"
            except InputError as error:
                reason = str(error)
            if not self._count:
                remedy = "" if self._address.is_camera else "; is the address right?"
                raise InputError(f"{self._address.title}: {reason}{remedy}")
            if not is_live:
                raise InputError(f"{self._address.title}: {reason}")
            if self._last - start > _STEADY:
                pause = FIRST_PAUSE
            if time.monotonic() - self._last + pause > self._retry:
                raise InputError(
                    f"{self._address.title}: lost after {self._count} frames and not back within {self._retry:g} s ({reason})"
                )
            if not is_told:
                log.warning("%s: connection lost (%s), trying again", self._address.title, reason)
                is_told = True
            with self._news:
                self._news.wait_for(lambda: self._is_stopped, pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _put(self, shot: Shot, is_live: bool) -> bool:
        """Puts a frame in place of the one that waits, or behind it where every frame counts; False once nobody reads."""
        now = time.monotonic()
        self._first = self._first or now
        with self._news:
            if not is_live:
                self._news.wait_for(lambda: self._is_stopped or self._waiting is None)
            if self._is_stopped:
                return False
            self._waiting = (shot, self._count, time.time(), now - self._first)
            self._count, self._last = self._count + 1, time.monotonic()
            self._news.notify_all()
        return True
