"""Bounded reads of small files, atomic writes, write checks and file hashes."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import json
import logging
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, Union

import numpy as np
from numpy.typing import NDArray

from runtime.console.terminal import printable
from runtime.errors import InputError, ItemError, OutputError

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

PathLike = Union[str, "os.PathLike[str]"]
SMALL_FILE = 32 << 20
"""Most bytes that are read of a text, list, manifest or settings file, unless its reader says otherwise."""

LARGEST_MODEL = 8 << 30
"""Most bytes that are read of a model file: far more than any detector's, with its optimizer's state."""

_LONGEST_REASON = 200  # characters: libraries quote what they cannot read
# Errors that another file in the same folder need not have.
_OWN_REASONS = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ELOOP}


@contextlib.contextmanager
def open_file(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a regular file to read its bytes; nothing that would block, never end or act when it is opened.

    Raises:
        InputError: no such file, another kind of file, or one that cannot be read, also inside the block.
    """
    try:
        _check_regular(os.stat(path))  # first: opening some devices does something
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            _check_regular(os.fstat(descriptor))  # again: another file may have taken its place
            yield file
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file, but a device, pipe or socket")


def read_bytes(path: PathLike, largest: int = SMALL_FILE) -> bytes:
    """Reads a file of at most `largest` bytes; see `open_file` for errors."""
    with open_file(path) as file:
        content = file.read(largest + 1) or b""
        if len(content) > largest:
            raise ValueError(f"it is larger than {largest >> 20} MB")
        return content


def read_text(path: PathLike, largest: int = SMALL_FILE) -> str:
    """Reads a UTF-8 text, with or without byte order mark; see `open_file` for errors."""
    try:
        return read_bytes(path, largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text (byte {error.start})") from error


def read_json(path: PathLike, largest: int = SMALL_FILE, build_object: Optional[Callable[..., Any]] = None) -> Any:
    """Reads a JSON file.

    Args:
        path: of the file.
        largest: bytes.
        build_object: makes an object from its pairs of names and values; a dict by default.

    Raises:
        InputError: as `open_file`, or not JSON.
    """
    try:
        return json.loads(read_text(path, largest), object_pairs_hook=build_object)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({printable(error, _LONGEST_REASON)})") from error


def read_arrays(path: PathLike, largest: int = SMALL_FILE) -> dict[str, NDArray[Any]]:
    """Reads the arrays of an `.npz` file by name; sizes are checked before memory is taken, and no code in it is run.

    Args:
        path: of the file.
        largest: bytes of the file, and of all its arrays together.

    Raises:
        InputError: as `open_file`, larger, damaged, or it holds anything but plain arrays.
    """
    content = read_bytes(path, largest)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > largest:
                raise ValueError(f"its arrays are larger than {largest >> 20} MB")
            return {entry.filename.removesuffix(".npy"): _read_array(archive.read(entry)) for entry in entries}
    except Exception as error:  # numpy, zipfile and zlib raise different types for every way a file can be damaged
        raise InputError(f"{path}: not readable as arrays ({printable(error, _LONGEST_REASON)})") from error


def _read_array(content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read_header[np.lib.format.read_magic(stream)](stream)
    needed = int(np.prod([*map(int, shape), dtype.itemsize], dtype=object))
    if dtype.hasobject or needed != len(content) - stream.tell():
        raise ValueError(f"an array {dtype} {list(shape)} in {len(content)} bytes")
    stream.seek(0)
    found: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return found


@contextlib.contextmanager
def atomic_write(path: PathLike, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` on success and is removed on failure.

    The temporary name keeps the suffix, since many libraries choose the format by it. A process that is killed leaves the
    temporary file behind, see `sweep_temporaries`.

    Args:
        path: the file.
        durable: have the disk hold it, name and content, before the block ends: it outlives a power failure.

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(path)
    _refuse_folder(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Shortened: the temporary name must not exceed the file system's limit where the target's own just fits.
        handle, name = tempfile.mkstemp(prefix=_temporary_prefix(target), suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        os.chmod(temporary, 0o666 & ~_umask())
        yield temporary
        if durable:
            _flush_to_disk(temporary)
        os.replace(temporary, target)
        temporary = None
        if durable and os.name == "posix":  # other systems cannot open a folder
            _flush_to_disk(target.parent)
    except OSError as error:
        is_single = error.errno in _OWN_REASONS
        remedy = "choose another name" if is_single else "choose another output or free some space"
        kind = ItemError if is_single else OutputError
        raise kind(f"cannot write {target}: {error.strerror or error}; {remedy}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _temporary_prefix(target: Path) -> str:
    return f".{target.stem[:32]}-"


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(path: PathLike) -> None:
    """Removes the temporary files that killed processes left of `atomic_write(path)`; none may be writing it now."""
    target = Path(path)
    prefix = _temporary_prefix(target)
    length = len(prefix) + 8 + len(target.suffix)  # tempfile draws 8 characters
    for item in target.parent.glob(f"{glob.escape(prefix)}*{glob.escape(target.suffix)}"):
        if len(item.name) == length:
            item.unlink(missing_ok=True)


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


@contextlib.contextmanager
def locked_folder(path: PathLike) -> Iterator[Path]:
    """Creates a folder as `output_folder` does, and keeps others from locking it while the block runs.

    The lock is the process's: it ends with it, however that ends, whatever processes it has forked. File systems and systems
    without locks have none.

    Raises:
        OutputError: another process holds the lock, or the folder cannot be written to.
    """
    folder = output_folder(path)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutputError(f"{folder}: another process writes into it; wait for its end, or choose another folder") from error
    except OSError as error:
        log.debug("%s cannot be locked: %s", folder, error)
    _LOCKS.add(descriptor)
    try:
        yield folder
    finally:
        _LOCKS.discard(descriptor)
        os.close(descriptor)


_LOCKS: set[int] = set()
"""Descriptors of the folders that this process holds."""


def _leave_locks() -> None:
    """Closes a forked process's copies of the locks, which would outlive the process that holds them."""
    for descriptor in _LOCKS:
        os.close(descriptor)
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def check_writable(path: PathLike) -> None:
    """Proves before long work that `path` can be written; an existing file is left alone.

    Raises:
        OutputError: `path` is a folder, or its folder cannot be written to.
    """
    _refuse_folder(Path(path))
    output_folder(Path(path).parent)


def _refuse_folder(target: Path) -> None:
    if os.path.isdir(target):  # which is False for a name that no file can have
        raise ItemError(f"cannot write {target}: it is a folder; choose another output")


def sha256(path: PathLike) -> str:
    """Returns the hexadecimal SHA-256 of a file's bytes; see `open_file` for errors."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
