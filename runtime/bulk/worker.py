"""Runs the model on one shard after another; Ray keeps one of these in each of its worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import cv2

from runtime.bulk.attempts import Attempts
from runtime.bulk.plan import Plan, read_rows
from runtime.bulk.shards import Counts, Row, read_counts, shard_path, size_of, text, to_row, write_shard
from runtime.detection_run import detect_each
from runtime.detector import Detector
from runtime.detector_options import DetectorOptions
from runtime.errors import InputError, ModelError
from runtime.files import sha256
from runtime.media.image import decode_image, read_image
from runtime.ops.image import MAX_PIXELS, Image
from runtime.streaming.prefetch import close_generator, prefetch

_Read = tuple[Optional[bytes], Union[Image, InputError]]


@dataclass(frozen=True)
class Job:
    """What the workers of a run work on.

    Attributes:
        chosen: the model, thresholds and classes.
        model_sha256: of the model file.
        folder: of the results.
        plan: of the run.
        bases: folders that names may be relative to, the first one first.
        table: Parquet file that holds the images, see `Images`.
        metadata: of each shard.
        batch: images that are run together; None for the model's fixed batch size, or 1.
    """

    chosen: DetectorOptions
    model_sha256: str
    folder: Path
    plan: Plan
    bases: tuple[str, ...]
    table: Optional[str]
    metadata: dict[str, str]
    batch: Optional[int]


class ShardWorker:
    """Makes the shards that it is given; opens the model with the first. An error is returned, not raised.

    Args:
        job: what to work on.
        threads: of the model and of OpenCV.
    """

    def __init__(self, job: Job, threads: int = 1) -> None:
        self._job, self._threads = job, threads
        self._detector: Optional[Detector] = None

    def __call__(self, given: dict[str, Any]) -> dict[str, list[Any]]:
        """Makes the shards of a batch of Ray Data; returns a row each: its number, its counts, and an error's type and text."""
        rows = [{"shard": int(shard), **self._attempt(int(shard))} for shard in given["shard"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _attempt(self, shard: int) -> dict[str, Any]:
        try:
            return {**vars(self.make(shard)), "kind": "", "error": ""}
        except Exception as error:  # Ray would wrap it in a traceback of its own, or try the shard again without an end
            return {**vars(Counts()), "kind": type(error).__name__, "error": str(error)}

    def make(self, shard: int) -> Counts:
        """Makes a shard, unless it is there: a worker that was killed may have written it."""
        job = self._job
        path = shard_path(job.folder, shard)
        counts = read_counts(path, job.plan.size(shard), job.metadata)
        if counts is None:
            attempts = Attempts(job.folder, shard)
            try:
                counts = write_shard(path, list(self._rows(shard, attempts)), job.metadata)
            except Exception:  # a full disk, a model that fails: no image killed this process
                attempts.finish()
                raise
            attempts.finish()
        return counts

    def _rows(self, shard: int, attempts: Attempts) -> Iterator[Row]:
        detector = self._open()
        batch = 1 if attempts.is_careful else self._job.batch or detector.batch_size
        part: list[_Read] = []
        pixels = 0
        contents = self._careful(shard, attempts) if attempts.is_careful else self._ahead(shard, batch)
        with close_generator(contents):
            for item in contents:
                part.append(item)
                pixels += 0 if isinstance(item[1], InputError) else item[1].shape[0] * item[1].shape[1]
                if len(part) >= batch or pixels > MAX_PIXELS:
                    yield from _detect(detector, part)
                    part, pixels = [], 0
            yield from _detect(detector, part)

    def _open(self) -> Detector:
        if self._detector is None:
            cv2.setNumThreads(self._threads)
            if sha256(self._job.chosen.engine) != self._job.model_sha256:
                raise ModelError(
                    f"{self._job.chosen.engine}: changed since the run began; put the old file back, or start another run"
                )
            self._detector = self._job.chosen.open(threads=self._threads)
        return self._detector

    def _ahead(self, shard: int, batch: int) -> Iterator[_Read]:
        """Reads images in another thread, a batch ahead."""
        return prefetch(self._contents(shard), self._read, depth=batch + 1)

    def _careful(self, shard: int, attempts: Attempts) -> Iterator[_Read]:
        """Reads one image at a time, and notes it before."""
        for number, (name, content) in enumerate(self._contents(shard)):
            if number in attempts.given_up:
                yield (
                    name,
                    InputError(f"{text(name)}: the process that worked on it was killed, several times; is it too large?"),
                )
            else:
                attempts.note(number)
                yield self._read((name, content))

    def _contents(self, shard: int) -> Iterator[tuple[Optional[bytes], Optional[bytes]]]:
        """Yields name and content of each image; the content is None for files, and for a row without."""
        job = self._job
        names = job.plan.names(shard)
        if job.table is None:
            yield from ((name, None) for name in names)
        else:
            yield from zip(names, read_rows(job.table, shard * job.plan.shard_size, len(names)))

    def _read(self, item: tuple[Optional[bytes], Optional[bytes]]) -> _Read:
        name, content = item
        try:
            if name is None or (self._job.table is not None and content is None):
                raise InputError(f"{text(name) or 'a row'}: the table has no {'path' if name is None else 'bytes'} here")
            if content is not None:
                return name, decode_image(content, os.fsdecode(name))
            return name, read_image(self._place(os.fsdecode(name)))
        except InputError as error:
            return name, error

    def _place(self, name: str) -> str:
        places = [os.path.join(base, name) for base in self._job.bases]
        return next(filter(os.path.exists, places), places[0])


def _detect(detector: Detector, part: list[_Read]) -> Iterator[Row]:
    """Yields the row of each image of a batch.

    Raises:
        ModelError: the model does not run; that is no fault of an image.
    """
    images = [image for _, image in part if not isinstance(image, InputError)]
    results = iter(detect_each(detector, images) if images else ())
    for name, image in part:
        if isinstance(image, InputError):
            yield to_row(name, None, image)
            continue
        found = next(results)
        if isinstance(found, ModelError):
            raise found
        yield to_row(name, size_of(image), found)
