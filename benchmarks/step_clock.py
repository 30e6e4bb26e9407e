"""Times the parts of training steps on the device's own clock, without making a step wait."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from train.data.epoch import SampleIndex
from train.data.training_set import Batch
from train.logs.data_wait import record_event
from train.run.prepare import Run

PARTS = ("data", "forward", "loss", "backward", "optimizer")


@dataclass(frozen=True)
class StepTimes:
    """Times of a run's steps.

    Attributes:
        steps: milliseconds of each part, one dictionary a step.
        waiting: share of the time that this process waited for batches, 0-1.
    """

    steps: list[dict[str, float]]
    waiting: float

    @property
    def totals(self) -> list[float]:
        """Milliseconds of each whole step."""
        return [sum(parts.values()) for parts in self.steps]


class _Mark(NamedTuple):
    """The moment a part ended.

    Attributes:
        part: that ended.
        at: seconds on this process's clock, which on a GPU runs ahead of the device's.
        event: on the device; None on a CPU.
    """

    part: str
    at: float
    event: torch.cuda.Event | None


class StepClock:
    """Marks the end of each part of each step.

    On a GPU the marks are events in the stream that computes, so a part is the device's time between two of them, its idle
    time included. `data` is all between two steps: waiting for the batch, copying and normalizing it, checking the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[_Mark] = []
        self._waits: list[tuple[float, float]] = []

    def watch(self, run: Run) -> None:
        """Marks the steps that a run makes from now on; the run computes as before."""
        model, precision, feed = run.state.model, run.state.precision, run.feed
        # What comes before the network in a step is `zero_grad`, the optimizer's too.
        model.compiled = self._marked("optimizer", model.compiled or model.outputs, "forward")
        precision.backward = self._marked("loss", precision.backward, "backward")  # type: ignore[method-assign]
        run.step = self._marked("data", run.step, "optimizer")
        feed.batches = self._waited_for(feed.batches)  # type: ignore[method-assign]

    def read(self, skip: int) -> StepTimes:
        """Waits for the device and returns the times of all steps but the first `skip`, which are at least one."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        begins = [index for index, mark in enumerate(self._marks) if mark.part == "data"]
        marks = self._marks[begins[skip] - 1 :]
        steps: list[dict[str, float]] = []
        for before, after in itertools.pairwise(marks):
            if after.part == "data":
                steps.append(dict.fromkeys(PARTS, 0.0))
            steps[-1][after.part] += _milliseconds(before, after)
        start, end = marks[0].at, marks[-1].at
        return StepTimes(steps, sum(seconds for at, seconds in self._waits if at >= start) / (end - start))

    def _mark(self, part: str) -> None:
        event = record_event(self._device)
        self._marks.append(_Mark(part, time.perf_counter(), event))

    def _marked(self, before: str, call: Any, after: str) -> Any:
        return _Marked(self._mark, before, call, after)

    def _waited_for(
        self, batches: Callable[[Sequence[Sequence[SampleIndex]]], Iterator[Batch]]
    ) -> Callable[[Sequence[Sequence[SampleIndex]]], Iterator[Batch]]:
        def timed(plan: Sequence[Sequence[SampleIndex]]) -> Iterator[Batch]:
            waiting = batches(plan)
            while True:
                start = time.perf_counter()
                batch = next(waiting, None)
                self._waits.append((start, time.perf_counter() - start))
                if batch is None:
                    return
                yield batch

        return timed


class _Marked:
    """Stands in for a callable object, whose calls it marks."""

    def __init__(self, mark: Callable[[str], None], before: str, call: Any, after: str) -> None:
        self._mark, self._before, self._call, self._after = mark, before, call, after

    def __call__(self, *arguments: Any) -> Any:
        self._mark(self._before)
        result = self._call(*arguments)
        self._mark(self._after)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def _milliseconds(before: _Mark, after: _Mark) -> float:
    if before.event is None or after.event is None:
        return (after.at - before.at) * 1e3
    return float(before.event.elapsed_time(after.event))  # type: ignore[no-untyped-call]
