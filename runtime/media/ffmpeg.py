"""Imports PyAV, which brings FFmpeg, where a video is read or written; images need neither."""

from __future__ import annotations

from typing import Any

from runtime.components import load


def import_av() -> Any:
    """Returns the module `av`; raises MissingComponentError without it."""
    return load("av")
