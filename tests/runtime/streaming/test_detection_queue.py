"""Images from asyncio tasks: each gets its own answer, in order, in bounded numbers, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import InputError, ModelError
from runtime.ops.image import Image
from runtime.streaming.detection_queue import DetectionQueue


def image(number: int) -> Image:
    return np.full((1, 1, 3), number, np.uint8)


class Model:
    """Finds as many objects as the image's value; remembers what it was given. `gate`: a run takes one of it."""

    def __init__(self, delay: float = 0.0, gate: threading.Semaphore | None = None) -> None:
        self.delay, self.gate, self.batches = delay, gate, list[list[int]]()
        self._busy = threading.Lock()

    def __call__(self, images: Sequence[Image]) -> list[Detections]:
        assert self._busy.acquire(blocking=False), "two runs at once"
        numbers = [int(image[0, 0, 0]) for image in images]
        self.batches.append(numbers)
        time.sleep(self.delay)
        if self.gate:
            self.gate.acquire()
        self._busy.release()
        if 13 in numbers:
            raise ModelError("unlucky")
        return [Detections.from_arrays([[0, 0, 1, 1]] * n, [1.0] * n, [0] * n) for n in numbers]

    @property
    def seen(self) -> list[int]:
        return [number for batch in self.batches for number in batch]


async def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 5
    while not condition() and time.monotonic() < limit:
        await asyncio.sleep(0.001)
    assert condition()


# --- the queue


@given(st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.001]), max_size=5), max_size=5), st.integers(1, 4))
@settings(max_examples=30)
def test_several_producers_get_their_own_answers_in_their_order(producers: list[list[float]], batch: int) -> None:
    model = Model()

    async def produce(queue: DetectionQueue, first: int, delays: list[float]) -> list[int]:
        answers = []
        for index, delay in enumerate(delays):
            await asyncio.sleep(delay)
            answers.append(await queue.put(image(first + index)))
        return [len(await answer) for answer in answers]

    async def main() -> list[list[int]]:
        async with DetectionQueue(model, batch) as queue:
            return await asyncio.gather(*(produce(queue, 20 * k, delays) for k, delays in enumerate(producers)))

    wanted = [[20 * k + index for index in range(len(delays))] for k, delays in enumerate(producers)]
    assert asyncio.run(main()) == wanted
    for numbers in wanted:
        assert [number for number in model.seen if number in numbers] == numbers
    assert all(len(numbers) <= batch for numbers in model.batches)


def test_who_brings_too_many_waits() -> None:
    gate = threading.Semaphore(0)
    model = Model(gate=gate)

    async def main() -> None:
        async with DetectionQueue(model, 2) as queue:
            calls = [asyncio.create_task(queue.put(image(n))) for n in range(9)]
            for room in (4, 6, 8, 9):  # 2 run, 2 wait
                await wait_for(lambda r=room: sum(call.done() for call in calls) >= r)  # type: ignore[misc]
                await asyncio.sleep(0.005)
                assert sum(call.done() for call in calls) == room
                gate.release()
            gate.release()
            for call in calls:
                await (await call)

    asyncio.run(main())
    assert model.batches == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]


def test_a_canceled_image_is_not_run_and_makes_room() -> None:
    gate = threading.Semaphore(0)
    model = Model(gate=gate)

    async def main() -> None:
        async with DetectionQueue(model, 1) as queue:
            running, waiting, third = (asyncio.create_task(queue.detect(image(n))) for n in (1, 2, 3))
            await wait_for(lambda: model.seen == [1])
            waiting.cancel()
            running.cancel()  # too late: its run goes on, nobody hears of it
            await asyncio.wait([waiting, running])
            gate.release(2)
            assert len(await third) == 3
            assert waiting.cancelled() and running.cancelled()

    asyncio.run(main())
    assert model.seen == [1, 3]


@pytest.mark.parametrize("batch", [1, 3])
def test_an_error_goes_to_those_it_concerns(batch: int) -> None:
    async def main() -> None:
        async with DetectionQueue(Model(), batch) as queue:
            with pytest.raises(InputError, match=r"expected uint8 BGR .*float32"):
                await queue.detect(np.zeros((1, 1, 3), np.float32))  # type: ignore[arg-type]
            answers = await asyncio.gather(*(queue.detect(image(n)) for n in (12, 13, 14)), return_exceptions=True)
            assert isinstance(answers[1], ModelError)
            assert [len(answer) for answer in answers if isinstance(answer, Detections)] == [12, 14]

    asyncio.run(main())


@pytest.mark.parametrize("batch", [1, 3])
def test_the_end_answers_what_runs_and_refuses_the_rest(batch: int) -> None:
    gate = threading.Semaphore(0)
    model = Model(gate=gate)

    async def main() -> list[Detections | BaseException]:
        queue = DetectionQueue(model, batch)
        with pytest.raises(InputError, match="the queue is closed"):
            await queue.detect(image(0))
        async with queue:
            calls = [asyncio.create_task(queue.detect(image(n))) for n in range(12)]
            await wait_for(lambda: len(model.seen) == batch)
            asyncio.get_running_loop().call_later(0.01, gate.release)
        with pytest.raises(InputError, match="the queue is closed"):
            await queue.detect(image(0))
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 1)

    answers = asyncio.run(main())
    assert [len(answer) for answer in answers if isinstance(answer, Detections)] == list(range(batch))
    assert {str(answer) for answer in answers[batch:]} == {"the queue is closed; detect inside its `async with` block"}
    assert model.seen == list(range(batch))


# --- with a model


def test_a_detector_in_asyncio(tiny_onnx: Path) -> None:
    async def main(detector: Detector) -> None:
        black, white = np.zeros((40, 50, 3), np.uint8), np.full((64, 128, 3), 255, np.uint8)
        async with detector.queue(batch=2) as queue:
            assert [len(found) for found in await asyncio.gather(queue.detect(white), queue.detect(black))] == [1, 0]
            detector.close()
            with pytest.raises(ModelError, match="the model was closed; open it again"):
                await queue.detect(white)
        with pytest.raises(InputError, match="batch: expected at least 1, got 0"):
            detector.queue(batch=0)

    before = threading.active_count()
    with Detector(tiny_onnx) as detector:
        asyncio.run(main(detector))
    assert threading.active_count() == before
