"""Imports of the libraries that only this room needs."""

from __future__ import annotations

import functools
from typing import Any

from runtime.components import load

EXTRA = "bulk"
"""Extra of the project that brings them."""


@functools.cache
def arrow() -> Any:
    """Returns `pyarrow`."""
    return load("pyarrow", EXTRA)


@functools.cache
def parquet() -> Any:
    """Returns `pyarrow.parquet`."""
    arrow()
    return load("pyarrow.parquet", EXTRA)
