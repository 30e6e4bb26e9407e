"""Times inference while several threads ask for it at once."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.benchmark.timing import milliseconds, spread

_WARM_UP = 3


@dataclass(frozen=True)
class Load:
    """Inference of one model under load.

    Attributes:
        letter: of the model.
        batch: size of each thread's batches.
        threads: number of threads, each of which begins a batch when its last one is done.
        milliseconds: of a batch as its thread sees it, waiting included; see `timing.spread`.
        images_per_second: of all threads together.
    """

    letter: str
    batch: int
    threads: int
    milliseconds: dict[str, float]
    images_per_second: float


def under_load(letter: str, backend: Backend, images: NDArray[Any], threads: int, repeats: int) -> Load:
    """Runs a batch `repeats` times in each of several threads at once.

    Each thread runs three more before, all at the same time, so that each has what it needs and a GPU its graphs.

    Raises:
        ModelError: the model failed.
    """
    times: list[float] = []
    problems: list[BaseException] = []
    warm, ready, is_stopped = threading.Barrier(threads), threading.Barrier(threads + 1), threading.Event()

    def work() -> None:
        try:
            for _ in range(_WARM_UP):
                warm.wait()
                backend.infer(images)
            ready.wait()
            for _ in range(repeats):
                if is_stopped.is_set():
                    return
                times.append(milliseconds(lambda: backend.infer(images)))
        except threading.BrokenBarrierError:  # another thread failed
            pass
        except BaseException as error:
            problems.append(error)
            warm.abort()
            ready.abort()

    workers = [threading.Thread(target=work, name=f"load {number}") for number in range(threads)]
    for worker in workers:
        worker.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    start = time.perf_counter()
    try:
        for worker in workers:
            worker.join()
    except BaseException:  # Ctrl-C: at the end of the program all threads are waited for
        is_stopped.set()
        raise
    seconds = time.perf_counter() - start
    if problems:
        raise problems[0]
    batch = len(images)
    return Load(letter, batch, threads, spread(times), batch * threads * repeats / seconds)
