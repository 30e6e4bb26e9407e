"""Opens cameras of this machine by OpenCV, which numbers them on every system."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import cv2
import numpy as np

from runtime.errors import InputError
from runtime.media.live.address import LiveAddress
from runtime.media.live.connection import Connection, Shot
from runtime.ops.image import Image


@contextlib.contextmanager
def open_camera(address: LiveAddress, timeout: float) -> Iterator[Connection]:
    """Opens a camera while the block runs.

    Args:
        address: its number or device.
        timeout: longest wait for a frame in seconds, where the system's driver takes one.

    Raises:
        InputError: there is none, or another program uses it.
    """
    number = int("".join(filter(str.isdigit, address.address)))
    capture = cv2.VideoCapture()
    try:
        opened = number < 2**31 and capture.open(number)
    except cv2.error:
        opened = False
    if not opened:
        raise InputError("it cannot be opened; is it connected, and does no other program use it?")
    try:
        for limit in ("CAP_PROP_READ_TIMEOUT_MSEC", "CAP_PROP_OPEN_TIMEOUT_MSEC"):
            capture.set(getattr(cv2, limit), timeout * 1e3)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        yield Connection(_shots(capture), is_live=True)
    finally:
        capture.release()


def _shots(capture: cv2.VideoCapture) -> Iterator[Shot]:
    """Yields frames until one cannot be read, as when the camera is unplugged."""
    while True:
        try:
            good, image = capture.read()
        except cv2.error as error:
            raise InputError(f"it cannot be read ({error.err})") from error
        if not good:
            raise InputError("it gives no more frames; was it unplugged?")
        yield functools.partial(_as_image, image), None


def _as_image(image: cv2.typing.MatLike) -> Image:
    return np.asarray(image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
