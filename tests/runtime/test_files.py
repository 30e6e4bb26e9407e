"""Atomic writes: a failure keeps the old file and leaves no temporary one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from runtime.errors import OutputError
from runtime.files import atomic_write, output_folder, sha256, write_json, write_text


def test_replacing_writes_beside_and_renames(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "a.json"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".json" and temporary.name.startswith(".")
        temporary.write_text("text")
        assert not target.exists()
    assert target.read_text() == "text"
    assert list(target.parent.iterdir()) == [target]


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "text")
        assert os.umask(0o027) == 0o027  # untouched
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_inside_leaves_what_was_there(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    target = tmp_path / "a.txt"
    if old:
        target.write_text(old)
    with pytest.raises(error), atomic_write(target) as temporary:  # noqa: PT012 - the write must come before the failure
        temporary.write_text("half")
        raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize("name", ["x" * 250 + ".txt", "ä" * 120 + ".txt", "x" * 255], ids=["long", "long UTF-8", "longest"])
def test_long_names(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file/a\.txt: "):
        write_text(tmp_path / "file" / "a.txt", "text")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"cannot write into .*file.*choose another folder"):
            output_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a" / "kept").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "a", "text")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]


def test_a_full_disk(tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]) -> None:
    write_text(tmp_path / "a", "old")
    message = r"cannot write .*a: File too large; choose another output or free some space"
    with full_disk(), pytest.raises(OutputError, match=message):
        write_text(tmp_path / "a", "x" * 100_000)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_no_space_for_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_json(tmp_path / "a", [1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [[], {}, {"ä": [1, 2.5, None, "x"]}])
def test_write_json_comes_back(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_output_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = output_folder(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b" and folder.is_dir() and list(folder.iterdir()) == []
    assert output_folder(folder) == folder


@pytest.mark.parametrize("data", [b"", b"abc", b"x" * 3_000_000])
def test_sha256(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
