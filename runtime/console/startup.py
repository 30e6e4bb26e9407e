"""Clean endings while a command is still importing its modules, before `runtime.cli.run` takes over.

Imports next to nothing itself, so that it is in place within milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys

from runtime.console import extras

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from types import FrameType, TracebackType
    from typing import Any, Callable, Optional

    _ExceptHook = Callable[[type[BaseException], BaseException, Optional[TracebackType]], Any]

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a command to end: Ctrl-C, `kill` and a closed terminal."""


_NEWER_PYTHON = (3, 10)  # what all packages but runtime are written for
_AGAIN = 0.02  # seconds, by which the callback has returned


def exit_code(number: int) -> int:
    """Returns the exit code by which shells report that a signal ended a program."""
    return 128 + number


def is_handled(number: int) -> bool:
    """True unless the caller had the signal ignored, as `nohup` and background shells do, or other code handles it."""
    return signal.getsignal(number) not in (signal.SIG_IGN, None)


def _guard_imports() -> None:
    """Ends a command that a signal or a broken package stops while it imports with one line; does nothing in a library.

    Python runs `python -m package…` with "-m" in `sys.argv[0]` until it has found the module, so a package that is imported
    then is being run.
    """
    if sys.argv[:1] == ["-m"]:
        for number in filter(is_handled, ENDING):
            signal.signal(number, leave)
        sys.excepthook = _reporter()
        sys.unraisablehook = _report_ignored
        extras.stand_in()


def leave(number: int, frame: Optional[FrameType] = None) -> None:
    """Ends the process for a signal at once; raised, it might become an ImportError in a module that is being imported."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(exit_code(number))


def _send_again(kind: type[BaseException]) -> None:
    """Sends a signal once more: C code printed what it raised in a callback or a destructor, and goes on."""
    import threading

    number = signal.SIGINT if kind is KeyboardInterrupt else signal.SIGTERM
    again = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _report_ignored(ignored: UnraisableHookArgs) -> None:
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        _send_again(ignored.exc_type)
    else:
        sys.__unraisablehook__(ignored)


def _reporter() -> _ExceptHook:
    # Imported now: once the import of the package has failed, none of its modules can be imported any more.
    from runtime.console.terminal import unexpected
    from runtime.errors import UNEXPECTED, MissingComponentError

    def report(kind: type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
        if isinstance(error, KeyboardInterrupt):
            _send_again(kind)
            return
        if "--debug" in sys.argv:
            sys.__excepthook__(kind, error, trace)
        if isinstance(error, ModuleNotFoundError) and error.name:
            print(f"error: {extras.missing(error.name.partition('.')[0])}", file=sys.stderr)
            sys.exit(MissingComponentError.exit_code)
        if sys.version_info < _NEWER_PYTHON and isinstance(error, (SyntaxError, TypeError)):
            print(f"error: this command needs Python 3.10 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
            sys.exit(MissingComponentError.exit_code)
        print(unexpected(error), file=sys.stderr)
        sys.exit(UNEXPECTED)

    return report


_guard_imports()
