"""Writing files so that a reader never meets half of one, and hashing them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from runtime.errors import OutputError

PathLike = Union[str, "os.PathLike[str]"]


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any failure it is removed.

    The temporary name keeps the suffix, so that libraries which choose a format by it do the right thing.

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(path)
    _refuse_folder(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The name is shortened, so that the temporary one fits where the target's own just does.
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:32]}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        os.chmod(temporary, 0o666 & ~_umask())
        yield temporary
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; choose another output or free some space"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: PathLike, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def output_folder(path: PathLike) -> Path:
    """Create the folder if need be and prove that it can be written to, before any long work starts."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}; choose another --output") from error
    return folder


def check_writable(path: PathLike) -> None:
    """Prove, before long work, that `path` can be written after it; what stands there now is left alone."""
    _refuse_folder(Path(path))
    output_folder(Path(path).parent)


def _refuse_folder(target: Path) -> None:
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder; choose another output")


def sha256(path: PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
