"""Keeps what a run has found so far in one file, so that it can be resumed and its tables be written in bounded memory."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from runtime.errors import InputError, OutputError
from runtime.results.records import Record

JOURNAL = "detections.journal"
_FORMAT = 1


class Journal:
    """Records of a run, appended as they are found; a process that is killed leaves those of finished sources.

    The first line holds the run's settings. A line of an image finishes it; the lines of a video are followed by one that
    says so. An earlier run's lines of a video that it did not finish are dropped.

    Args:
        folder: of the results.
        settings: of the run, plain values; a run with others cannot be resumed.
        resume: continue the journal that is there, if there is one.

    Attributes:
        is_resumed: there was one.
        finished: sources that have their results.
        has_records: of this run or an earlier one.

    Raises:
        InputError: the journal is of a run with other settings, or no journal.
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self._path = folder / JOURNAL
        self.finished: set[str] = set()
        self.is_resumed = resume and self._path.exists()
        self._end = self._read(settings) if self.is_resumed else 0  # of the last finished source's lines
        self.has_records = bool(self.finished)
        self._file: Optional[io.FileIO] = None
        try:
            self._file = io.FileIO(self._path, "r+" if self.is_resumed else "w")  # not buffered: a record is there or not
            self.discard_unfinished()
        except OSError as error:
            raise self._unwritable(error) from error
        if not self._end:
            self._append({"journal": _FORMAT, "settings": settings})
            self._end = self._file.tell()

    def _read(self, settings: dict[str, Any]) -> int:
        """Collects the finished sources; returns where the last one's lines end."""
        end = position = 0
        try:
            with open(self._path, "rb") as file:
                for line in file:
                    item = _parse(line)
                    if not position and not line.endswith(b"\n"):  # killed as it began
                        return 0
                    if not position:
                        self._check(item, settings)
                        end = len(line)
                    position += len(line)
                    if item is None:  # cut in mid-line
                        break
                    if "finished" in item or ("source" in item and "frame" not in item):
                        self.finished.add(str(item.get("finished") or item["source"]))
                        end = position
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read ({error.strerror or error})") from error
        return end

    def _check(self, header: Optional[dict[str, Any]], settings: dict[str, Any]) -> None:
        if header is None or header.get("journal") != _FORMAT or not isinstance(header.get("settings"), dict):
            raise InputError(f"{self._path}: no journal of this version; leave out --resume, or choose another --output")
        earlier = header["settings"]
        for name in sorted(settings.keys() | earlier.keys()):
            if settings.get(name) != earlier.get(name):
                raise InputError(
                    f"--resume: the results in {self._path.parent} were made with {name} {earlier.get(name)}, now it is"
                    f" {settings.get(name)}; use the same, or choose another --output"
                )

    def add(self, record: Record) -> None:
        """Appends a record; one without a `frame` finishes its source."""
        self._append(record)
        self.has_records = True
        if "frame" not in record:
            self._finished(record["source"])

    def finish(self, source: str) -> None:
        """Marks a source of several frames, or one that has its results from elsewhere, as finished."""
        self._append({"finished": source})
        self._finished(source)

    def discard_unfinished(self) -> None:
        """Removes the records of a source that was not finished, and what a full disk has cut."""
        if self._file is not None:
            self._file.seek(self._end)
            self._file.truncate()

    def _finished(self, source: str) -> None:
        assert self._file is not None
        self.finished.add(source)
        self._end = self._file.tell()

    def _append(self, item: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            rest = json.dumps(item).encode() + b"\n"
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._path}: {error.strerror or error}; free some space or choose another output")

    def records(self) -> Iterator[Record]:
        """Yields the records of all finished sources, in the order in which they were found."""
        with open(self._path, "rb") as file:
            for line in file:
                item = _parse(line)
                if item is not None and "source" in item:
                    yield item

    def close(self, *, keep: bool) -> None:
        """Closes the file, and removes it unless it is to be kept."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError:  # what could not be written was reported when it was
            keep = keep and bool(self.finished)
        if not keep:
            os.unlink(self._path)


def _parse(line: bytes) -> Optional[dict[str, Any]]:
    """Parses a line; None for one that is cut or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return item if isinstance(item, dict) else None
