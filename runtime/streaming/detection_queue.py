"""Batches images from any number of asyncio tasks for one model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Callable, Optional

from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.errors import InputError
from runtime.ops.image import Image, check_image

Detect = Callable[[Sequence[Image]], list[Detections]]


class DetectionQueue:
    """Runs images from any number of asyncio tasks, first come first served, as many at a time as are waiting.

    `Detector.queue` makes one; use it by `async with`. At most `batch` images wait while `batch` run; further tasks wait for
    room. Where a batch fails, each of its images is run alone, so that an error concerns its own image. At the end of the block
    running images are answered and waiting ones refused.

    Args:
        detect: takes images, returns the detections in each; called in another thread, one call at a time.
        batch: largest number of images a run.
    """

    def __init__(self, detect: Detect, batch: int) -> None:
        self._detect, self._batch = detect, batch
        self._is_open = False
        self._waiting: dict[asyncio.Future[Detections], Image] = {}

    async def __aenter__(self) -> DetectionQueue:
        self._is_open = True
        self._room, self._news = asyncio.Semaphore(self._batch), asyncio.Event()
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._is_open = False
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(_closed())
        self._news.set()
        await asyncio.wait([self._worker])

    async def detect(self, image: Optional[NDArray[Any]]) -> Detections:
        """Detects in one uint8 BGR image `[H, W, 3]`; if its task is canceled before its turn, it is not run.

        Raises:
            InputError: an image of another dtype or shape, or the queue is closed.
            ModelError: the model was closed, or is damaged.
        """
        return await (await self.put(image))

    async def put(self, image: Optional[NDArray[Any]]) -> asyncio.Future[Detections]:
        """Adds an image once there is room; awaiting the result gives its detections. Raises what `detect` does."""
        checked = check_image(image)
        if not self._is_open:
            raise _closed()
        await self._room.acquire()
        if not self._is_open:
            self._room.release()  # for the next who waits
            raise _closed()
        answer: asyncio.Future[Detections] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = checked
        answer.add_done_callback(self._take)  # canceled, it makes room
        self._news.set()
        return answer

    def _take(self, answer: asyncio.Future[Detections]) -> Optional[Image]:
        image = self._waiting.pop(answer, None)
        if image is not None:
            self._room.release()
        return image

    async def _work(self) -> None:
        while self._is_open:
            await self._news.wait()
            self._news.clear()
            while self._waiting and self._is_open:
                taken = [(answer, self._take(answer)) for answer in list(self._waiting)[: self._batch]]
                await self._run({answer: image for answer, image in taken if image is not None})

    async def _run(self, jobs: dict[asyncio.Future[Detections], Image]) -> None:
        try:
            found = await asyncio.get_running_loop().run_in_executor(None, self._detect, list(jobs.values()))
        except Exception as error:
            if len(jobs) > 1:
                for answer, image in jobs.items():
                    if not answer.done():
                        await self._run({answer: image})
                return
            for answer in jobs:
                if not answer.done():
                    answer.set_exception(error)
            return
        for answer, detections in zip(jobs, found):
            if not answer.done():  # canceled meanwhile
                answer.set_result(detections)


def _closed() -> InputError:
    return InputError("the queue is closed; detect inside its `async with` block")
