"""Cameras, played by a stand-in for OpenCV's: unplugged, plugged in again, gray, missing."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from runtime.errors import InputError
from runtime.media.live import reader
from runtime.media.live.address import live_address
from runtime.media.live.reader import read_live

opened: list[int] = []


class Camera:
    """Gives as many frames as its turn says; a turn of 0 cannot be opened."""

    turns: ClassVar[list[int]] = []
    shape: tuple[int, ...] = (48, 64, 3)
    held = 0

    def open(self, number: int) -> bool:
        opened.append(number)
        self._left = Camera.turns.pop(0) if Camera.turns else 0
        Camera.held += bool(self._left)
        return self._left > 0

    def set(self, *_: Any) -> bool:
        return False

    def read(self) -> tuple[bool, Any]:
        self._left -= 1
        return (True, np.full(self.shape, 7, np.uint8)) if self._left >= 0 else (False, None)

    def release(self) -> None:
        Camera.held = 0


@pytest.fixture(autouse=True)
def camera(monkeypatch: pytest.MonkeyPatch) -> None:
    opened.clear()
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(reader, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(Camera, "turns", [])


def frames(source: str, retry: float = 0.1) -> Any:
    live = live_address(source)
    assert live is not None
    return read_live(live, timeout=0.2, retry=retry)


def test_unplugged_and_plugged_in_again() -> None:
    Camera.turns[:] = [5, 0, 0, 5]
    with pytest.raises(InputError, match=r"^camera 3: lost after 10 frames and not back within 0\.1 s"):
        list(frames("3"))
    assert set(opened) == {3} and len(opened) > 4 and Camera.held == 0


def test_a_gray_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Camera, "shape", (48, 64))
    Camera.turns[:] = [10**9]
    taken = frames("/dev/video1")
    assert [frame.image.shape for frame in itertools.islice(taken, 2)] == [(48, 64, 3)] * 2
    taken.close()
    assert opened == [1] and Camera.held == 0


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"^camera 0: it cannot be opened; is it connected, and does no other program use it"):
        next(frames("0", retry=60))
    with pytest.raises(InputError, match=r"^camera 99999999999: it cannot be opened"):
        next(frames("99999999999"))
    assert opened == [0]
