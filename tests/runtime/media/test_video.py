"""Videos: frames as they were written, cut files, and files that are whole or not there."""

from __future__ import annotations

import io
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime.console import signals
from runtime.errors import InputError, ItemError, OutputError
from runtime.media import video, video_writer
from runtime.media.video import frame_count, read_frames, read_video
from runtime.media.video_end import is_cut
from runtime.media.video_writer import write_video
from runtime.ops.image import Image

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "MJPG", ".webm": "VP80"}
KINDS = ("a.mp4", "a.mov", "a.avi", "a.mkv", "a.webm")
FRAMES = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of each kind: 2 seconds of noise that grows brighter."""
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    frames = [rng.integers(4 * n, 4 * n + 40, (48, 64, 3), dtype=np.uint8) for n in range(FRAMES)]
    for name in KINDS:
        writer = cv2.VideoWriter(str(root / name), cv2.VideoWriter.fourcc(*CODECS[Path(name).suffix]), 25, (64, 48))
        assert writer.isOpened()
        for frame in frames:
            writer.write(frame)
        writer.release()
    return root


def cut(path: Path, length: float, folder: Path) -> Path:
    """A copy that ends after this share of its bytes."""
    target = folder / path.name
    target.write_bytes(path.read_bytes()[: int(path.stat().st_size * length)])
    return target


# --- reading


@pytest.mark.parametrize("name", KINDS)
def test_frames_come_back_in_order(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    found = list(read_frames(folder / name, strict=True))
    frames = [frame.image for frame in found]
    assert [frame.time for frame in found] == pytest.approx([n / 25 for n in range(FRAMES)], abs=1e-3)
    assert [(frame.shape, frame.dtype) for frame in frames] == [((48, 64, 3), np.uint8)] * FRAMES
    assert all(abs(float(frame.mean()) - 4 * n - 19.5) < 4 for n, frame in enumerate(frames))  # lossy
    assert frame_count(folder / name) == FRAMES
    assert not is_cut(folder / name) and not caplog.records


def test_a_reader_may_stop_early(folder: Path) -> None:
    frames = read_video(folder / "a.mp4")
    next(frames)
    frames.close()
    assert list(frames) == []


@pytest.mark.parametrize("content", [b"", b"no video"])
def test_not_a_video(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.mp4: not a video that can be decoded"):
        list(read_video(path))
    assert frame_count(path) is None


# --- files that are cut short


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.webm"])
@pytest.mark.parametrize("length", [0.3, 0.7, 0.98])
def test_of_a_cut_video_comes_what_there_is(
    folder: Path, name: str, length: float, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = cut(folder / name, length, tmp_path)
    count = len(list(read_video(path)))
    assert abs(count - length * FRAMES) < 5
    (record,) = caplog.records
    of = "" if count == FRAMES else f" of {FRAMES}"
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith(
        f"{name}: the video is cut short or damaged; {count}{of} frames could be decoded, the last one perhaps in part"
    )
    caplog.clear()
    frames = read_video(path, strict=True)
    assert [next(frames).shape for _ in range(count)] == [(48, 64, 3)] * count
    with pytest.raises(InputError, match=f"{name}: the video is cut short"):
        next(frames)
    assert not caplog.records


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_a_cut_video_without_its_index_is_refused(
    folder: Path, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=f"{name}: cut short, nothing of it can be decoded"):
        list(read_video(cut(folder / name, 0.5, tmp_path)))


def test_a_video_that_holds_fewer_frames_than_it_says(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Damaged, yet of the length it says: everything behind the first third is gone."""
    data = bytearray((folder / "a.avi").read_bytes())
    data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)
    (tmp_path / "a.avi").write_bytes(data)
    count = len(list(read_video(tmp_path / "a.avi")))
    assert 10 < count < 20 and not is_cut(tmp_path / "a.avi")
    assert f"; {count} of 50 frames could be decoded" in caplog.messages[0]


@given(st.sampled_from(KINDS), st.integers(100, 1_000_000))
@settings(max_examples=60)
def test_every_cut_is_noticed(folder: Path, name: str, place: int) -> None:
    data = (folder / name).read_bytes()
    length = 100 + place % (len(data) - 100)
    assume(not 0 <= length - data.rfind(b"moov") + 4 < 8)  # between two parts of an .mp4
    path = folder / f"cut{Path(name).suffix}"
    path.write_bytes(data[:length])
    assert is_cut(path)
    path.write_bytes(data + b"\0" * (place % 99))  # something behind the end is no cut
    assert not is_cut(path)


@given(
    st.binary(max_size=64), st.sampled_from([b"RIFF", b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\0\0\0\1mdat", b"\0\0\0\0free", b""])
)
def test_any_bytes_have_an_answer(tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(start + content)
    assert is_cut(path) in (True, False)
    assert not is_cut(path.parent) and not is_cut(path.parent / "gone")


# --- writing


def test_frames_of_other_sizes_are_fitted(tmp_path: Path) -> None:
    sizes = ((64, 48), (128, 48), (20, 48), (64, 48))
    write_frames(tmp_path / "a.mp4", [np.full((height, width, 3), 200, np.uint8) for width, height in sizes])
    frames = list(read_video(tmp_path / "a.mp4"))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 4
    wide, narrow = frames[1], frames[2]
    assert wide[20:28].min() > 180 and wide[:8].max() < 20 and wide[-8:].max() < 20
    assert narrow[:, 26:38].min() > 180 and narrow[:, :16].max() < 20
    assert min(frames[0].min(), frames[3].min()) > 180


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_video_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"earlier")

    def work() -> None:
        with write_video(tmp_path / "a.mp4") as write:
            write(np.zeros((48, 64, 3), np.uint8), 0)
            raise error

    with pytest.raises(error):
        work()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == b"earlier"


class InterruptedFile(io.FileIO):
    """A file at whose n-th reading or writing Ctrl-C is pressed."""

    count, n = 0, 1

    def press(self) -> None:
        self.count += 1
        if self.count == self.n:
            signal.raise_signal(signal.SIGINT)

    def read(self, size: int = -1, /) -> bytes:
        self.press()
        return super().read(size) or b""

    def write(self, data: Any, /) -> int:
        self.press()
        return super().write(data)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("way", ["reading", "writing"])
def test_ctrl_c_within_ffmpeg(folder: Path, tmp_path: Path, way: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg reads and writes by callbacks, which cannot pass an exception on."""
    monkeypatch.setattr(video, "_open_file", InterruptedFile)
    monkeypatch.setattr(video_writer, "open", InterruptedFile, raising=False)
    monkeypatch.setattr(InterruptedFile, "n", n)
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)

    def work() -> None:
        if way == "reading":
            list(read_video(folder / "a.avi"))
        else:
            write_frames(tmp_path / "a.mp4", noise(60))

    with signals.raised() as received, pytest.raises(KeyboardInterrupt):
        work()
    assert received and not ignored and list(tmp_path.iterdir()) == []


def noise(count: int) -> list[Image]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(count)]


def write_frames(path: Path, frames: Iterable[Image]) -> None:
    with write_video(path) as write:
        for number, frame in enumerate(frames):
            write(frame, number / 25)


def test_a_full_disk(
    tmp_path: Path, full_disk: Callable[..., AbstractContextManager[None]], capfd: pytest.CaptureFixture[str]
) -> None:
    with full_disk(40_000), pytest.raises(OutputError, match=r"cannot write .*a\.mp4: File too large; .* free some space"):
        write_frames(tmp_path / "a.mp4", noise(60))
    assert list(tmp_path.iterdir()) == []
    write_frames(tmp_path / "a.mp4", noise(60))
    assert (tmp_path / "a.mp4").stat().st_size > 40_000


@pytest.mark.parametrize(
    ("frames", "message"),
    [([], "there are no frames"), ([np.zeros((8, 9000, 3), np.uint8)], "FFmpeg cannot encode these frames")],
)
def test_frames_that_cannot_be_encoded(tmp_path: Path, frames: list[Image], message: str) -> None:
    with pytest.raises(OutputError, match=rf"a\.mp4: {message}") as error:
        write_frames(tmp_path / "a.mp4", frames)
    assert isinstance(error.value, ItemError)
    assert list(tmp_path.iterdir()) == []
