"""Defines what an open camera or stream is to its reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, Optional

from runtime.ops.image import Image

Shot = tuple[Callable[[], Image], Optional[float]]
"""A function that makes the image of a frame, and its time in seconds since the first where the stream states it."""


@dataclass
class Connection:
    """An open camera or stream.

    Attributes:
        shots: of its frames. They end with the stream, and raise InputError where it is lost.
        is_live: frames come at their own pace and do not wait; False for a video file on a server.
    """

    shots: Iterator[Shot]
    is_live: bool
