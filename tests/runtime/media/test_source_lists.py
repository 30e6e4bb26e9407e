"""Lists of files, stdin, and folders in folders."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.media.sources import find_sources, read_source
from tests.support.image_files import encode
from tests.support.stream_server import encoded


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in folders, one of them linked, two hidden; the working folder."""
    for name in ("a.png", "sub/b.png", "sub/deep/c.png", "sub/.hidden.png", ".hidden/d.png", "out/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    (tmp_path / "in" / "sub" / "loop").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


def pipe(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_folders_in_a_folder(folder: Path) -> None:
    found = [str(source.name) for source in find_sources("in", recursive=True)]
    assert found == ["a.png", "out/a.png", "sub/b.png", "sub/deep/c.png"]
    found = [str(source.name) for source in find_sources("in", recursive=True, leave_out=folder / "out")]
    assert found == ["a.png", "sub/b.png", "sub/deep/c.png"]
    (folder / "sub" / "b.png").unlink()
    with pytest.raises(InputError, match="in/sub: the folder has no files; add --recursive to read the folders in it"):
        find_sources("in/sub")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"in/a.png\nin/sub/b.png\n", ["a.png", "sub/b.png"]),
        # its own order, each once, ends of lines of any system
        (b"\xef\xbb\xbfin/sub/b.png\r\n\r\nin/a.png\r\nin/a.png", ["sub/b.png", "a.png"]),
        # names separated as by `find -print0`
        (b"in/sub/b.png\0in/a.png\0", ["sub/b.png", "a.png"]),
        ("in/sub/b.png\nin/a.png\n".encode("utf-16"), ["sub/b.png", "a.png"]),
        # what is missing is noticed later
        (b"in/a.png\nin/gone.png\n", ["a.png", "gone.png"]),
        # no result may lie outside of its folder
        (b"in/sub/../a.png\nin/../in/sub/b.png\n", ["a.png", "sub/b.png"]),
        (b"in/a.png\nin/caf\xe9.png\n", ["a.png", os.fsdecode(b"caf\xe9.png")]),
    ],
)
def test_lists(text: bytes, names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list.txt").write_bytes(text)
    pipe(text, monkeypatch)
    for source in ("list.txt", "-"):
        assert [str(item.name) for item in find_sources(source)] == names


def test_names_of_a_list_are_relative_to_it_or_to_the_working_folder(folder: Path) -> None:
    (folder / "list.lst").write_text("a.png\nsub/b.png\nin/sub/deep/c.png\n")
    assert [str(source.path) for source in find_sources("in/list.lst")] == ["in/a.png", "in/sub/b.png", "in/sub/deep/c.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "stdin: is empty; expected an image or a list of files"),
        (b"\n \n", "stdin: is empty"),
        (b"gone.png\n", r"stdin: not an image that can be decoded, and no list of files \(there is no gone.png\)"),
        (encoded(), "stdin: is a video; save it to a file"),
        (encode(".png", np.zeros((4, 4, 3), np.uint8))[:40], "stdin: the image is truncated"),
        (b"\x01\x02\x03 no image", "stdin: not an image that can be decoded"),
    ],
)
def test_bad_stdin(content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(content, monkeypatch)
    with pytest.raises(InputError, match=message):
        read_source(find_sources("-")[0])


def test_a_terminal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(InputError, match="stdin: nothing is piped into the command"):
        find_sources("-")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".ppm"])
def test_an_image_on_stdin(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(encode(suffix, np.full((6, 8, 3), 200, np.uint8)), monkeypatch)
    (source,) = find_sources("-")
    assert (source.title, str(source.name), source.is_video) == ("-", "stdin.png", False)
    assert read_source(source).shape == (6, 8, 3)


def test_an_image_that_is_called_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(encode(".png", np.zeros((6, 8, 3), np.uint8)))
    assert read_source(find_sources(str(tmp_path / "a.txt"))[0]).shape == (6, 8, 3)
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.txt: not an image that can be decoded, and no list of files \(it is empty\)"):
        find_sources(str(tmp_path / "empty.txt"))


def test_streams_are_no_files() -> None:
    with pytest.raises(InputError, match=r"^rtsp://host/x: expected files; only python -m runtime\.detect reads cameras"):
        find_sources("rtsp://user:secret@host/x")
