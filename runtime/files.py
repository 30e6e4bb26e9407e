"""Atomic file writes, write checks and file hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from runtime.errors import OutputError

PathLike = Union[str, "os.PathLike[str]"]

_FAULTS_OF_ONE_NAME = frozenset({errno.ENAMETOOLONG, errno.EILSEQ, errno.EISDIR})


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` on success and is removed on failure.

    The temporary name keeps the suffix, since many libraries choose the format by it.

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(path)
    _refuse_folder(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Shortened: the temporary name must not exceed the file system's limit where the target's own just fits.
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:32]}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        os.chmod(temporary, 0o666 & ~_umask())
        yield temporary
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        is_single = error.errno in _FAULTS_OF_ONE_NAME
        remedy = "choose another name" if is_single else "choose another output or free some space"
        raise OutputError(f"cannot write {target}: {error.strerror or error}; {remedy}", is_single=is_single) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: PathLike, text: str) -> None:
    """Writes `text` as UTF-8, completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any) -> None:
    """Writes `value` as JSON, completely or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def output_folder(path: PathLike) -> Path:
    """Creates the folder if needed and proves that it can be written to, before any long work starts.

    Raises:
        OutputError: it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}; choose another folder") from error
    return folder


def check_writable(path: PathLike) -> None:
    """Proves before long work that `path` can be written; an existing file is left alone.

    Raises:
        OutputError: `path` is a folder, or its folder cannot be written to.
    """
    _refuse_folder(Path(path))
    output_folder(Path(path).parent)


def _refuse_folder(target: Path) -> None:
    if os.path.isdir(target):
        raise OutputError(f"cannot write {target}: it is a folder; choose another output")


def sha256(path: PathLike) -> str:
    """Returns the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
