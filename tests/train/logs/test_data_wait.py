"""Waits for data: what a GPU computes meanwhile is no wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from train.logs import data_wait
from train.logs.data_wait import Wait, timed


class Event:
    """Stands for an event on a GPU's stream, which fires at a time in milliseconds."""

    def __init__(self, at: float = 0.0, fired: bool = True) -> None:
        self.at, self.fired = at, fired

    def query(self) -> bool:
        return self.fired

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


@pytest.mark.parametrize(
    ("host", "idle", "seconds"),
    [
        (0.5, None, 0.5),
        (0.5, (Event(1000), Event(1001)), 0.001),  # the GPU was busy for nearly all of it
        (0.5, (Event(1000), Event(1800)), 0.5),  # and idle for other reasons too
        (0.0, (Event(1000), Event(1800)), 0.0),
        (0.5, (Event(1000), Event(0, fired=False)), 0.5),
    ],
)
def test_a_wait_is_what_the_device_stood_idle_for_want_of_data(host: float, idle: Any, seconds: float) -> None:
    assert Wait(host, idle).seconds() == pytest.approx(seconds)


def test_the_time_for_each_item_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(data_wait.time, "perf_counter", lambda: now[0])

    def items() -> Iterator[str]:
        for name, seconds in (("a", 3.0), ("b", 0.0), ("c", 2.0)):
            now[0] += seconds
            yield name

    found = []
    for name, wait in timed(items(), torch.device("cpu")):
        found.append((name, wait.seconds(), wait.idle))
        now[0] += 10.0  # the step
    assert found == [("a", 3.0, None), ("b", 0.0, None), ("c", 2.0, None)]


@pytest.mark.gpu
def test_a_gpu_that_is_busy_waits_for_nothing() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")

    def items() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    device, matrix = torch.device("cuda"), torch.rand(8192, 8192, device="cuda")
    for busy in (True, False):
        waits = []
        for _, wait in timed(items(), device):
            waits.append(wait)
            for _ in range(20 if busy else 0):
                matrix @ matrix  # about half a second on any GPU
        torch.cuda.synchronize()
        first, *others = [wait.seconds() for wait in waits]
        assert first > 0.04
        assert all(wait < 0.02 for wait in others) if busy else all(wait > 0.04 for wait in others)
