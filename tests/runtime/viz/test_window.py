"""The window of `--show`: its keys, and machines without a display."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from runtime.errors import MissingComponentError
from runtime.viz.window import Window

IMAGE = np.zeros((4, 6, 3), np.uint8)


def test_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingComponentError, match="--show needs a display"):
        Window()


def test_without_windows_in_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    def headless(*_: object) -> None:
        raise cv2.error("not implemented")

    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr(cv2, "namedWindow", headless)
    with pytest.raises(MissingComponentError, match="--show needs an OpenCV with windows"):
        Window()


@pytest.mark.parametrize(
    ("keys", "wait", "is_open", "goes_on"),
    [
        ([-1], False, 1, True),
        ([ord("q")], False, 1, False),
        ([-1, -1, ord(" ")], True, 1, True),
        ([-1, 27], True, 1, False),
        ([-1], True, 0, False),
    ],
)
def test_keys(keys: list[int], wait: bool, is_open: int, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":99")
    for name in ("namedWindow", "resizeWindow", "imshow", "destroyWindow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: is_open)
    monkeypatch.setattr(cv2, "waitKey", lambda _: keys.pop(0))
    with Window() as window:
        assert window.show(IMAGE, wait=wait) == goes_on
    assert not keys
