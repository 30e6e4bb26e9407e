"""A disk that fills up amid a write."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest


class ShortDisk:
    """Files that take only some bytes of a write while `full` is set.

    Args:
        monkeypatch: replaces `Path.open`.
        name: the files' names begin with it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.full, original = False, Path.open

        def opened(path: Path, mode: str = "r", **options: Any) -> Any:
            file: Any = original(path, mode, **options)
            if not (self.full and path.name.startswith(name)):
                return file
            full = MagicMock(wraps=file)
            full.__enter__ = lambda _: full
            full.__exit__ = lambda *_: file.close()

            def write(content: bytes) -> None:
                file.write(content[:7])
                file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")

            full.write = write
            return full

        monkeypatch.setattr(Path, "open", opened)
