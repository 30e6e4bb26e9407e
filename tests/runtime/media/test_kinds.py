"""The content of a file tells whether it is an image or a video; the suffix only where the content does not."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from runtime.media.kinds import VIDEO_SUFFIXES, is_video
from runtime.media.sources import Source
from runtime.media.video import read_video
from tests.support.image_files import needs_gif

FRAME = np.full((48, 64, 3), 90, np.uint8)
CONTAINERS = {  # of FFmpeg, and a codec that each holds
    "mp4": "mpeg4", "mov": "mpeg4", "3gp": "mpeg4", "avi": "mpeg4", "matroska": "mpeg4", "webm": "libvpx",
    "mpegts": "mpeg2video",
       "mpeg": "mpeg1video", "vob": "mpeg2video", "flv": "flv", "asf": "mpeg4", "mxf": "mpeg2video", "ivf": "libvpx",
}  # fmt: skip


@pytest.mark.parametrize("name", ["clip", "clip.jpg"])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_videos_of_any_name(kind: str, name: str, tmp_path: Path) -> None:
    codec = CONTAINERS[kind]
    with av.open(str(tmp_path / name), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(FRAME, format="bgr24")))
        container.mux(stream.encode(None))
    assert is_video(tmp_path / name)
    assert len(list(read_video(tmp_path / name, strict=True))) >= 11  # the first of a stream may be needed by none


@pytest.mark.parametrize("name", ["image", "image.mp4", "image.ts", "image.txt"])
@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp", ".tif", pytest.param(".gif", marks=needs_gif), ".jp2"])
def test_images_of_any_name(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(cv2.imencode(kind, FRAME)[1].tobytes())
    assert not Source(tmp_path / name, Path(name)).is_video


@pytest.mark.parametrize(
    ("content", "suffix", "expected"),
    [(b"", suffix, True) for suffix in sorted(VIDEO_SUFFIXES)]
    + [
        (b"", ".jpg", False),
        (b"text", ".txt", False),
        (b"text", ".MP4", True),
        (b"\0\0\0\x18ftypheic", ".mp4", False),
        (b"\0\0\0\x18ftypcrx ", ".mp4", False),
    ],
)
def test_the_suffix_decides_where_the_content_does_not(content: bytes, suffix: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    assert is_video(path) is (suffix.lower() in VIDEO_SUFFIXES)  # not there
    path.write_bytes(content)
    assert is_video(path) is expected
