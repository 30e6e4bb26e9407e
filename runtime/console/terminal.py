"""Keeps text that quotes names and file content from controlling a terminal, and output from failing on it."""

from __future__ import annotations

import contextlib
import logging
import numbers
import os
import re
import select
import sys
from collections.abc import Iterator
from typing import Any, Optional

# Characters that control a terminal, reorder the text around them or end a line.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SCREEN_CONTROLS = re.compile(r"(?![\n\r\t])" + _CONTROLS.pattern)  # progress bars return to the start of their line
_LONGEST = 2000  # characters of a message
_LONGEST_NAME = 300  # characters of a name in a message that is not an error


def printable(value: object, longest: int = _LONGEST) -> str:
    """Returns a value as one line: control characters are escaped, and the middle of a long text is left out."""
    return shortened(_CONTROLS.sub(_escaped, shortened(str(value), longest)), longest)  # cut twice: an escape is longer


def unexpected(error: BaseException) -> str:
    """Returns the line that reports an error which no code expected."""
    return f"unexpected: {type(error).__name__}: {printable(error)}; please report it, details with --debug"


def shortened(text: str, longest: int) -> str:
    """Returns a text with its middle left out where it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    end = longest // 2
    return f"{text[: longest - end - 1]}…{text[-end:]}"


def _escaped(found: re.Match[str]) -> str:
    return ascii(found.group())[1:-1]


class LineFormatter(logging.Formatter):
    """Formats a log record; names, paths and errors in it can neither start a line nor control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats the record; see `logging.Formatter.format`."""
        if isinstance(record.args, tuple):
            record = logging.makeLogRecord({**vars(record), "args": tuple(map(_argument, record.args))})
        return super().format(record)


def _argument(value: object) -> object:
    return value if isinstance(value, numbers.Number) else printable(value, _LONGEST_NAME * (1 + isinstance(value, Exception)))


class _GuardedStream:
    """Text stream that escapes control characters on their way to another one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._stream.write(_SCREEN_CONTROLS.sub(_escaped, text)))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Guards stdout and stderr while the block runs.

    Neither fails on a character that its encoding lacks. Control characters reach neither stderr nor a terminal; a pipe on
    stdout gets names as they are.
    """
    out, err = sys.stdout, sys.stderr
    for stream in (out, err):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if out is not None and out.isatty():
        sys.stdout = _GuardedStream(out)
    if err is not None:
        sys.stderr = _GuardedStream(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def reader_is_gone() -> bool:
    """True if stdout or stderr is a pipe that nobody reads any more, as with `| head`."""
    return any(_has_no_reader(stream) for stream in (sys.stdout, sys.stderr))


def _has_no_reader(stream: Optional[Any]) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # type: ignore[union-attr]
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such stream, no descriptor, or no poll on this system
        return False


def discard_output() -> None:
    """Sends what stdout and stderr still hold to nowhere, so that the interpreter does not fail on it when it ends."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
