"""Receives what TensorRT says: lines of its log, and the parser's errors."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

log = logging.getLogger(__name__)


def make_logger(api: Any, errors: deque[str]) -> Any:
    """Creates an `ILogger` that keeps errors for exceptions and passes every line on to `logging` as debug."""
    base: Any = api.ILogger
    levels = base.Severity

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (levels.ERROR, levels.INTERNAL_ERROR):
                errors.append(msg)
            log.debug("%s", msg)

    return Logger()


def describe(error: Any) -> str:
    """Formats a parser error with its node, which TensorRT 8.6 knows by number alone."""
    name, operator = (getattr(error, key)() if hasattr(error, key) else "" for key in ("node_name", "node_operator"))
    reason = " ".join(error.desc().split())
    if error.node() < 0:
        return f"it ({reason})"
    return f"node {repr(name) if name else error.node()} ({operator or 'operator unknown'}): {reason}"
