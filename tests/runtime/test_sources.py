"""What a source may name, and frames of a video as they were written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import InputError
from runtime.sources import Source, find_sources, frame_rate, read_picture, read_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "notes.txt", ".hidden.png", "film.MP4", "sub/c.png", "sub/a.png", "[1].png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    return tmp_path / "in"


def names(sources: list[Source]) -> list[str]:
    return [str(source.name) for source in sources]


def test_a_folder_gives_all_its_visible_files(folder: Path) -> None:
    sources = find_sources(str(folder))
    assert names(sources) == ["[1].png", "a.png", "b.jpg", "film.MP4", "notes.txt"]
    assert [source.path for source in sources] == [folder / name for name in names(sources)]
    assert [source.is_video for source in sources] == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["[1].png", "a.png"]),
        ("?.*", ["a.png", "b.jpg"]),
        ("sub/*", ["a.png", "c.png"]),
        # files of one name in two folders stay apart
        ("**/*.png", ["[1].png", "a.png", "sub/a.png", "sub/c.png"]),
        ("**", ["[1].png", "a.png", "b.jpg", "film.MP4", "notes.txt", "sub/a.png", "sub/c.png"]),
        # a file whose name looks like a pattern
        ("[1].png", ["[1].png"]),
        ("a.png", ["a.png"]),
    ],
)
def test_patterns_and_single_files(folder: Path, pattern: str, found: list[str]) -> None:
    assert names(find_sources(str(folder / pattern))) == found


def test_relative_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [(s.path, str(s.name)) for s in find_sources("sub")] == [
        (Path("sub/a.png"), "a.png"),
        (Path("sub/c.png"), "c.png"),
    ]
    assert names(find_sources("*/../*.jpg")) == ["b.jpg"]


@pytest.mark.parametrize("source", ["gone.jpg", "gone/", "*.gone", "empty", "hidden"])
def test_nothing_there(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^" + source.replace("*", r"\*") + ": (no such|the folder has no files)"):
        find_sources(source)


def test_read_picture_refuses_by_name(folder: Path) -> None:
    with pytest.raises(InputError, match=r"notes\.txt: not a picture"):
        read_picture(find_sources(str(folder / "notes.txt"))[0])


@pytest.fixture
def write_video(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "a.mp4", count: int = 6, rate: float = 10) -> Path:
        writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter.fourcc(*"mp4v"), rate, (64, 48))
        assert writer.isOpened()
        for number in range(count):
            writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
        writer.release()
        return tmp_path / name

    return write


def test_frames_come_back_in_order(write_video: Callable[..., Path]) -> None:
    frames = list(read_video(write_video()))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 6
    assert [frame.dtype for frame in frames] == [np.uint8] * 6
    for number, frame in enumerate(frames):
        assert abs(float(frame.mean()) - 40 * number) < 4  # lossy


def test_a_reader_may_stop_early(write_video: Callable[..., Path]) -> None:
    frames = read_video(write_video())
    next(frames)
    frames.close()
    assert list(frames) == []


@pytest.mark.parametrize("rate", [5, 29.97])
def test_frame_rate(rate: float, write_video: Callable[..., Path]) -> None:
    assert frame_rate(write_video(rate=rate)) == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_not_a_video(tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.mp4: not a video that can be decoded"):
        list(read_video(path))
    assert frame_rate(path) == 25


def test_a_truncated_video_gives_what_it_has_or_is_refused(
    write_video: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_video()
    os.truncate(path, path.stat().st_size // 2)  # an .mp4 has its index at the end
    with pytest.raises(InputError, match=r"a\.mp4"):
        list(read_video(path))
