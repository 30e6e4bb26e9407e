"""Ends a command in order on Ctrl-C, `kill` and a closed terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Callable, Optional

from runtime.console.startup import ENDING, exit_code, is_handled

_Handler = Callable[[int, Optional[FrameType]], Any]


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; whatever cleans up after Ctrl-C cleans up after it too."""


def number_of(error: BaseException) -> int:
    """Returns the signal that an error stands for."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


@contextlib.contextmanager
def raised() -> Iterator[list[int]]:
    """Lets the signals raise in the main thread while the block runs: KeyboardInterrupt, or Terminated.

    Yields:
        The signals received so far: a library may have turned the exception into another.
    """
    received: list[int] = []
    process = os.getpid()

    def interrupt(number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() != process and number != signal.SIGINT:  # a worker process that its parent ends
            os._exit(exit_code(number))
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    with _handled_by(interrupt, is_handled):
        yield received


@contextlib.contextmanager
def held(most: Optional[int] = None) -> Iterator[list[int]]:
    """Holds the signals that Python handles back until the block ends: C code in it may swallow what they raise.

    Args:
        most: signals held back; the next one acts at once. None for all.

    Yields:
        The signals held back so far, so that a long block can end early.
    """
    received: list[int] = []
    earlier = {number: signal.getsignal(number) for number in ENDING}

    def hold(number: int, frame: Optional[FrameType]) -> None:
        handler = earlier[number]
        if most is not None and len(received) >= most and callable(handler):
            handler(number, frame)
        else:
            received.append(number)

    try:
        with _handled_by(hold, lambda number: callable(earlier[number])):
            yield received
    finally:
        for number in received:
            signal.raise_signal(number)


@contextlib.contextmanager
def _handled_by(handler: _Handler, applies: Callable[[int], bool]) -> Iterator[None]:
    """Sets the handler of each signal that it applies to; other threads than the main one cannot, and do not."""
    earlier: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        earlier = {number: signal.getsignal(number) for number in ENDING if applies(number)}
    try:
        for number in earlier:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in earlier.items():
            signal.signal(number, old)
