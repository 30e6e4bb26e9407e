"""Cameras and streams by what a source says, and their names without passwords."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.media.live.address import live_address


@pytest.mark.parametrize(
    ("source", "title", "name"),
    [
        ("0", "camera 0", "camera-0.mp4"),
        ("12", "camera 12", "camera-12.mp4"),
        ("/dev/video3", "camera /dev/video3", "camera-3.mp4"),
        ("rtsp://host/stream", "rtsp://host/stream", "host-stream.mp4"),
        ("RTSP://host:554/a/b.sdp", "RTSP://host:554/a/b.sdp", "host-554-a-b-sdp.mp4"),
        ("udp://@:5004", "udp://:5004", "5004.mp4"),
        ("http://[::1", "http://[::1", "1.mp4"),
        ("http://", "http://", "stream.mp4"),
        # passwords, also those that ought to be quoted
        ("rtsp://user:secret@host/x", "rtsp://host/x", "host-x.mp4"),
        ("rtsp://user:sec@ret@host/x", "rtsp://host/x", "host-x.mp4"),
        ("rtsp://user:sec/ret@host/x", "rtsp://host/x", "host-x.mp4"),
        ("http://host/x?user=u&pwd=secret", "http://host/x", "host-x.mp4"),
    ],
)
def test_live(source: str, title: str, name: str) -> None:
    found = live_address(source)
    assert found and (found.address, found.title, str(found.name)) == (source, title, name)
    assert found.is_camera == title.startswith("camera")


@pytest.mark.parametrize("source", ["", "a.png", "0.png", "-1", "²", "file:///etc/passwd", "concat:a|b", "C://x", "photos/"])
def test_not_live(source: str) -> None:
    assert live_address(source) is None


def test_a_file_comes_before_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").mkdir()
    assert live_address("0") is None and live_address("1") is not None
