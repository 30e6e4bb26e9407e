"""Reads lists of files, from a file or from stdin, which may hold an image instead."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from runtime.errors import InputError
from runtime.files import open_file, read_bytes
from runtime.media.image import LARGEST_FILE
from runtime.media.kinds import video_by_content

STDIN = "-"
"""The source that stands for stdin."""

_LIST_SUFFIXES = frozenset({".txt", ".lst"})
_SOME = 1000  # names of a list, of which at least one must be there
_LARGEST_LIST = 256 << 20  # bytes: some millions of names
_HEAD = 512  # bytes that tell
_NO_TEXT = re.compile(rb"[\x01-\x08\x0b\x0e-\x1f\x7f]")
_NETPBM = re.compile(rb"P[1-7]\s")


def read_stdin() -> bytes:
    """Reads all of stdin.

    Raises:
        InputError: it is a terminal, empty, a video, or larger than any image.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("stdin: nothing is piped into the command; expected an image or a list of files")
    content = sys.stdin.buffer.read(LARGEST_FILE + 1)
    if not content.strip():
        raise InputError("stdin: is empty; expected an image or a list of files")
    if video_by_content(content[:_HEAD]):
        raise InputError("stdin: is a video; save it to a file and give its name")
    return content


def is_image(content: bytes) -> bool:
    """True unless the bytes are text, as a list of files is."""
    head = content[:_HEAD]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return False
    return video_by_content(head) is False or bool(_NETPBM.match(head)) or bool(_NO_TEXT.search(head))


def is_list(path: Path) -> bool:
    """True if a file is to be read as a list of files: by its suffix, unless it holds an image or a video."""
    if path.suffix.lower() not in _LIST_SUFFIXES:
        return False
    with open_file(path) as file:
        head = file.read(_HEAD)
    return video_by_content(head) is None and not is_image(head)


def read_list(path: Path) -> bytes:
    """Reads a list of files; raises InputError for one that is too large."""
    return read_bytes(path, _LARGEST_LIST)


def listed_files(title: str, content: bytes, folder: Path) -> list[Path]:
    """Lists the files that a text names, each once: one a line, or separated by NUL as by `find -print0`.

    Those that are missing are listed too, so that they are noticed.

    Args:
        title: of the list, for errors.
        content: the text.
        folder: that names are relative to; those that are not there may be relative to the working folder.

    Raises:
        InputError: it names no file at all.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # as PowerShell writes text
        content = os.fsencode(content.decode("utf-16", "replace"))
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\0" if b"\0" in content else b"\n")
    names = [os.fsdecode(line) for line in (line.strip(b"\r\n") for line in lines) if line.strip()]
    files = list(dict.fromkeys(_place(name, folder) for name in names))
    if not any(file.exists() for file in files[:_SOME]):
        first = f"there is no {names[0]}" if names else "it is empty"
        raise InputError(f"{title}: not an image that can be decoded, and no list of files ({first})")
    return files


def _place(name: str, folder: Path) -> Path:
    place = folder / name
    return Path(name) if not place.exists() and Path(name).exists() else place
