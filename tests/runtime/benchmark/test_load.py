"""Inference in several threads at once: how many run, what is counted, and how a failure ends."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from runtime.benchmark.load import under_load
from runtime.errors import ModelError


class Backend:
    """Counts its calls; the one with the number `failing` fails."""

    def __init__(self, failing: int = -1) -> None:
        self.calls, self.failing, self.threads, self.lock = 0, failing, set[str](), threading.Lock()

    def infer(self, images: np.ndarray) -> list[np.ndarray]:
        with self.lock:
            self.calls += 1
            self.threads.add(threading.current_thread().name)
            if self.calls == self.failing:
                raise ModelError("made up")
        return []


@pytest.mark.parametrize(("threads", "repeats", "told"), [(1, 5, False), (4, 5, True), (4, 30, True)])
def test_every_thread_runs_as_often(threads: int, repeats: int, told: bool) -> None:
    backend: Any = Backend()
    found = under_load("A", backend, np.zeros((2, 3)), threads, repeats)
    assert backend.calls == threads * (3 + repeats) and len(backend.threads) == threads
    assert (found.letter, found.batch, found.threads) == ("A", 2, threads)
    assert ("p95" in found.milliseconds) == told and ("p99" in found.milliseconds) == (threads * repeats >= 100)
    assert found.images_per_second > 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load ")]


def test_threads_warm_up_together() -> None:
    """One that warms up alone would leave the others to open their part of the backend while they are timed."""
    order: list[str] = []
    backend: Any = Backend()
    backend.infer = lambda _: order.append(threading.current_thread().name)
    under_load("A", backend, np.zeros((1, 3)), 4, 1)
    for start in (0, 4, 8):
        assert len(set(order[start : start + 4])) == 4


@pytest.mark.parametrize("failing", [1, 3, 20])
def test_a_failure_ends_all_threads(failing: int) -> None:
    backend: Any = Backend(failing)
    with pytest.raises(ModelError, match="made up"):
        under_load("A", backend, np.zeros((1, 3)), 4, 10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load ")]
