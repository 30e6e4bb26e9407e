"""Shows annotated images in a window, where this machine has a display."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Optional

import cv2

from runtime.errors import MissingComponentError
from runtime.ops.image import Image

_TITLE = "detections (q to quit)"
_QUIT = frozenset({ord("q"), 27})  # Esc
_WAIT = 50  # milliseconds between two looks at a window that waits for a key


class Window:
    """A window for annotated images; use it by `with`.

    Raises:
        MissingComponentError: there is no display, or this OpenCV has no windows.
    """

    def __init__(self) -> None:
        has_display = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if not has_display:
            raise MissingComponentError("--show needs a display, and there is none; leave it out, or write --save images,video")
        try:
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise MissingComponentError(
                "--show needs an OpenCV with windows; run `pip uninstall opencv-python-headless`, `pip install opencv-python`"
            ) from error
        self._size: Optional[tuple[int, int]] = None

    def show(self, image: Image, *, wait: bool) -> bool:
        """Shows an image; returns False once the user has closed the window or pressed q or Esc.

        Args:
            image: uint8 BGR `[H, W, 3]`.
            wait: until a key is pressed.
        """
        size = image.shape[1], image.shape[0]
        if size != self._size:
            self._size = size
            cv2.resizeWindow(_TITLE, *size)
        cv2.imshow(_TITLE, image)
        while True:
            key = cv2.waitKey(_WAIT if wait else 1) & 0xFF
            if key in _QUIT or cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1:
                return False
            if not wait or key != 0xFF:
                return True

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        cv2.destroyWindow(_TITLE)
