"""Writes TensorBoard's files, and others that grow, so that a full disk does them no lasting harm."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.ops.image import Image

_BINS = np.linspace(0, 1, 51)  # of histograms of shares


class AppendedFile:
    """A file that grows. What is appended is there as a whole or not at all; the folder is made if need be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size if path.exists() else 0

    def append(self, content: bytes) -> None:
        """Appends; raises OSError if it cannot be written."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            self._size = min(self._size, file.tell())
            file.truncate(self._size)  # what a full disk cut short
            file.write(content)
        self._size += len(content)


class Board:
    """A run of TensorBoard.

    TensorBoard's own writer leaves the writing to a thread, whose errors come late, with a traceback, and end it for good.

    Args:
        folder: of the run.
        first: first epoch or step to come; TensorBoard drops what an interrupted run left of it and of later ones.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from torch.utils.tensorboard import summary  # slow to import, and nobody else needs it

        self._event: Any = Event
        self._make: Any = summary
        now = time.time()
        self._file = AppendedFile(folder / f"events.out.tfevents.{int(now):010}.{socket.gethostname()}.{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self._beginning = _records(
            [Event(wall_time=now, file_version="brain.Event:2"), Event(wall_time=now, step=first, session_log=start)]
        )

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values by tag; raises OSError if they cannot be written, as the following do."""
        self._add(step, [self._make.scalar(tag, value) for tag, value in values.items()])

    def add_shares(self, step: int, samples: Mapping[str, NDArray[np.float64]]) -> None:
        """Adds histograms of values in [0, 1] by tag."""
        self._add(step, [self._make.histogram(tag, values, _BINS) for tag, values in samples.items()])

    def add_image(self, step: int, tag: str, image: Image) -> None:
        """Adds a uint8 BGR image."""
        self._add(step, [self._make.image(tag, image[..., ::-1], dataformats="HWC")])

    def _add(self, step: int, summaries: Iterable[Any]) -> None:
        now = time.time()
        events = [self._event(wall_time=now, step=step, summary=summary) for summary in summaries]
        self._file.append(self._beginning + _records(events))
        self._beginning = b""


def _records(events: Iterable[Any]) -> bytes:
    """Encodes events as TensorFlow's records."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in events:
        writer.write(event.SerializeToString())
    return stream.getvalue()
