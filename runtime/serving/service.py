"""Answers images from any number of requests with one detector: bounded, batched, and without what nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Optional

from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.media.image import decode_image
from runtime.ops.image import Image
from runtime.serving.limits import Limits, RefusedRequestError
from runtime.serving.metrics import Metrics
from runtime.streaming.detection_queue import DetectionQueue
from runtime.streaming.statistics import RunStatistics

DEFAULT_BATCH = 8
_DECODERS = 4  # threads
_LONGEST_RETRY = 60  # seconds


@dataclass(frozen=True)
class Batch:
    """A run of the model.

    Attributes:
        size: number of images.
        start: `time.perf_counter()` when it began.
        milliseconds: by stage, for all its images together.
    """

    size: int
    start: float
    milliseconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class BatchDetections(Detections):
    """Detections of one image, with the batch that it was run in."""

    batch: Batch


@dataclass(frozen=True)
class Answer:
    """Answer to one image.

    Attributes:
        image: uint8 BGR `[H, W, 3]`.
        found: at the detector's score threshold.
        milliseconds: by stage: `decode`, `wait`, and those of the batch that it was run in.
        batch: number of images in that batch.
    """

    image: Image
    found: Detections
    milliseconds: dict[str, float]
    batch: int


class Service:
    """Runs the images of many requests; use it by `async with`. It leaves the detector open.

    Args:
        detector: runs the images, in threads of the service.
        limits: of images and time.
        batch: largest number of images in a run; by default the model's fixed batch size, or 8.
        metrics: counts runs and stages.
    """

    def __init__(self, detector: Detector, limits: Limits, batch: Optional[int], metrics: Metrics) -> None:
        self._detector, self._limits, self._metrics = detector, limits, metrics
        fixed = detector.batch_size
        self.batch = batch or (fixed if fixed > 1 else DEFAULT_BATCH)
        if self.batch < 1:
            raise InputError(f"batch: expected at least 1, got {batch}")
        self._queue: Optional[DetectionQueue] = None
        self._held = 0  # images between decoding and answer
        self._seconds = 0.0  # of a run, lately
        self._running_since: Optional[float] = None
        metrics.watch(lambda: self._held)

    async def __aenter__(self) -> Service:
        if self._queue is not None:
            raise InputError("the detector is started already; make an application for each server")
        self._decoders = ThreadPoolExecutor(_DECODERS, "decode")
        self._queue = await DetectionQueue(self._run, self.batch).__aenter__()
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            await queue.__aexit__(kind, error, trace)
        self._decoders.shutdown()

    @property
    def problem(self) -> Optional[str]:
        """Why no image can be answered now, in one line; None if all is well."""
        if self._queue is None:
            return "the detector is not started; run the lifespan of the application that serves it"
        since = self._running_since
        if since is not None and time.perf_counter() - since > self._limits.answer_seconds:
            return f"the model has been running for more than {self._limits.answer_seconds:g} s"
        return None

    async def answer(self, data: bytes) -> Answer:
        """Decodes an image and detects in it; canceled, it drops what has not begun.

        Args:
            data: an image file's content.

        Raises:
            RefusedRequestError: too many images at a time, or not ready (503); the image cannot be used (422).
            ModelError: the model failed.
        """
        with self._place() as queue:
            start = time.perf_counter()
            loop = asyncio.get_running_loop()
            try:
                image = await loop.run_in_executor(self._decoders, self._decode, data)
            except InputError as error:
                raise RefusedRequestError(422, str(error)) from error
            decoded = time.perf_counter()
            found = await queue.detect(image)
        milliseconds = {"decode": 1e3 * (decoded - start)}
        if not isinstance(found, BatchDetections):
            raise TypeError("expected what `_run` returns")
        milliseconds["wait"] = max(1e3 * (found.batch.start - decoded), 0.0)
        return Answer(image, found, {**milliseconds, **found.batch.milliseconds}, found.batch.size)

    @contextlib.contextmanager
    def _place(self) -> Iterator[DetectionQueue]:
        """Takes one of the places for images, or refuses."""
        problem = self.problem
        if problem or self._queue is None:
            raise RefusedRequestError(503, problem or "", retry_after=self._retry_after())
        if self._held >= self._limits.most_images:
            message = f"{self._held} images are waiting or running, which is the limit; try again"
            raise RefusedRequestError(503, message, retry_after=self._retry_after())
        self._held += 1
        try:
            yield self._queue
        finally:
            self._held -= 1

    def _retry_after(self) -> int:
        """Returns the seconds in which the images that are held now will probably be answered."""
        return min(max(math.ceil(self._seconds * self._held / self.batch), 1), _LONGEST_RETRY)

    def _decode(self, data: bytes) -> Image:
        with self._metrics.time("decode"):
            return decode_image(data, "image", most_pixels=self._limits.most_pixels)

    def _run(self, images: Sequence[Image]) -> list[Detections]:
        times = RunStatistics()
        self._running_since = start = time.perf_counter()
        try:
            found = self._detector.timed(images, times)
        finally:
            self._running_since = None
            seconds = time.perf_counter() - start
            self._seconds = 0.8 * self._seconds + 0.2 * seconds if self._seconds else seconds
        batch = Batch(len(images), start, times.milliseconds())
        self._metrics.see_run(batch.size, batch.milliseconds)
        return [BatchDetections(item.boxes, item.scores, item.class_ids, batch) for item in found]
