"""Imports PyAV, which brings FFmpeg, where a video is read or written; images need neither."""

from __future__ import annotations

from typing import Any

from runtime.errors import MissingComponentError


def import_av() -> Any:
    """Returns the module `av`."""
    try:
        import av
    except ImportError as error:
        raise MissingComponentError(f"videos need PyAV ({error}); install it by: pip install av") from error
    return av
