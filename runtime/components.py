"""Imports the libraries that a machine may lack, with the remedy where it does."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from typing import Any, Optional

from runtime.console import signals
from runtime.console.extras import DISTRIBUTION
from runtime.console.terminal import printable
from runtime.errors import MissingComponentError

# No library may report to its maker what runs here, whoever imports it; see docs/security.md.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by ONNX Runtime when it is imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # likewise, by Ray
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO takes a stub of its own instead


def is_installed(name: str) -> bool:
    """True if a top-level module is installed, whether or not it loads."""
    return importlib.util.find_spec(name) is not None


def load(name: str, extra: str = "") -> Any:
    """Imports an optional library.

    Args:
        name: of the module.
        extra: of this project that brings the library, for the remedy; by default it is the package of that name.

    Raises:
        MissingComponentError: it is not installed, or it is but does not load.
    """
    package = name.partition(".")[0]
    try:
        return import_library(name)
    except Exception as error:  # a broken installation fails in as many ways as there are libraries
        missing = isinstance(error, ModuleNotFoundError) and error.name in (name, package)
        problem = "is not installed" if missing else f"is installed but does not load ({reason(error)})"
        remedy = "" if missing else "--force-reinstall "
        wanted = f"'{DISTRIBUTION}[{extra}]'" if extra and missing else package
        raise MissingComponentError(f"{package} {problem}; run `pip install {remedy}{wanted}`") from error


@functools.cache
def load_if_installed(name: str) -> Optional[Any]:
    """Imports an optional library once; None where it is not installed. Raises MissingComponentError where it does not load."""
    return load(name) if is_installed(name) else None


def import_library(name: str) -> Any:
    """Imports a library; raises whatever that does."""
    with signals.held():  # C code in a library may turn the exception of Ctrl-C into an ImportError
        return importlib.import_module(name)


def reason(error: Exception) -> str:
    """Returns the first line of what a library says, for messages."""
    return printable(next(iter(str(error).splitlines()), type(error).__name__), 300)
