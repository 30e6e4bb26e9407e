"""Bounded reads refuse what is no small file; atomic writes keep the old file on a failure and leave no temporary one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InputError, ItemError, OutputError
from runtime.files import (
    atomic_write,
    locked_folder,
    output_folder,
    read_arrays,
    read_bytes,
    read_json,
    read_text,
    sha256,
    sweep_temporaries,
    write_json,
    write_text,
)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


READERS: dict[str, Callable[[Path], object]] = {
    "bytes": read_bytes,
    "text": read_text,
    "JSON": read_json,
    "arrays": read_arrays,
    "hash": sha256,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "No such file or directory"),
        ("none/below", "No such file or directory"),
        (".", "it is a folder"),
        ("fifo", "no regular file"),
        ("/dev/zero", "no regular file"),
        ("/dev/stdin", "no regular file|No such"),
        ("a\0b", "null (byte|character)"),
        ("x" * 300, "File name too long"),
        ("/proc/self/mem", "Input/output error"),
    ],
)
@pytest.mark.usefixtures("fifo")
def test_what_is_no_small_file_is_refused_at_once(reader: str, name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"cannot be read .*({reason})"):
        READERS[reader](tmp_path / name)


def test_an_endless_or_large_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"sparse: cannot be read \(it is larger than 32 MB"):
        read_json(tmp_path / "sparse")
    (tmp_path / "a").write_bytes(b"abc")
    assert read_bytes(tmp_path / "a", 3) == b"abc"
    with pytest.raises(InputError, match="larger"):
        read_bytes(tmp_path / "a", 2)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),
        (b"\xef\xbb\xbf\xc3\xa4", "ä"),
        (b"\xc3\xa4\r\n", "ä\r\n"),
        (b"a\xff", None),
        (b"\xff\xfea\0", None),
    ],
)
def test_texts(content: bytes, text: str | None, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    if text is None:
        with pytest.raises(InputError, match=r"a: is no UTF-8 text \(byte \d\)"):
            read_text(tmp_path / "a")
    else:
        assert read_text(tmp_path / "a") == text


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\0", b"nul", b"1" * 5000, b"{'a': 1}"])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    if content.isdigit():  # refused by newer Pythons alone
        return
    with pytest.raises(InputError, match="a: not readable as JSON"):
        read_json(tmp_path / "a")


def npy(header: str, data: bytes = b"") -> bytes:
    padded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + len(padded).to_bytes(2, "little") + padded + data


@pytest.mark.parametrize(
    ("member", "compression"),
    [
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10**12,), }".replace("10**12", "1000000000000")), 0),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2305843009213693952,), }"), 0),  # whose bytes overflow to 0
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1), }", bytes(8)), 0),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x02N."), 0),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (), }", bytes(7)), 0),
        (npy("__import__('os')"), 0),
        (b"", 0),
        (b"\x93NUMPY\x09\0", 0),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100000000,), }", bytes(100_000_000)), zipfile.ZIP_DEFLATED),
    ],
)
def test_what_is_no_plain_array_is_refused(member: bytes, compression: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(InputError, match=r"a\.npz: not readable as arrays"):
        read_arrays(tmp_path / "a.npz")


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text"), "c": np.asfortranarray(np.ones((2, 3), np.uint8))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == list(arrays) and all(np.array_equal(found[name], arrays[name]) for name in arrays)


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


@pytest.mark.parametrize("name", ["x" * 300, "folder", "file/below", "loop/below"])
def test_what_another_file_need_not_have_is_the_items_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ItemError, match="cannot write"):
        write_text(tmp_path / name, "text")
    write_text(tmp_path / "other", "text")


HOLD = """
import os, sys
from runtime.files import locked_folder
with locked_folder(sys.argv[1]):
    if os.fork() == 0:  # as the workers of a data loader are: it outlives the holder and must not hold on to the lock
        os.write(1, b"locked\\n")  # by the child: it has let go of its copy of the lock
        os.close(1)
        os.read(0, 1)
        os._exit(0)
    sys.stdin.read()
"""


def test_a_durable_write_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        seen.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix, (tmp_path / "a.pt").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_write(tmp_path / "a.pt", durable=True) as temporary:
        temporary.write_bytes(b"1")
    assert seen == [(".pt", False), ("", True)]  # the file, then the folder that names it


def test_what_a_killed_write_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = ["last.pt", "last-1.pt", ".last-mine.pt", ".best-abcdefgh.pt", ".last-abcdefgh.txt"]
    for name in [*kept, ".last-abcdefgh.pt", ".last-_1234567.pt"]:
        (tmp_path / name).touch()
    sweep_temporaries(tmp_path / "last.pt")
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(kept)


def test_a_locked_folder_is_free_again_once_its_holder_ends_in_any_way(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == b"locked\n"
        with pytest.raises(OutputError, match="run: another process writes into it; wait"), locked_folder(tmp_path / "run"):
            pass
        holder.kill()
        holder.wait()
        for _ in range(2):
            with locked_folder(tmp_path / "run") as folder:
                assert list(folder.iterdir()) == []
