"""Order of the functions that run at the end of the interpreter."""

from __future__ import annotations

import atexit
from typing import Callable


def run_first(function: Callable[[], None]) -> None:
    """Has a function run at exit, before those that are registered now: of libraries that what it ends may be using."""
    atexit.unregister(function)
    atexit.register(function)
