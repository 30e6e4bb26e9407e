"""Times how long steps wait for their data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Wait(NamedTuple):
    """Wait of a step for its data.

    Attributes:
        host: seconds that this process waited.
        idle: on a GPU, fire at the end of the step before and at the beginning of this one; None elsewhere.
    """

    host: float
    idle: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def seconds(self) -> float:
        """Returns the seconds for which the device had nothing to do; read once the step is done, this waits for nothing.

        A process that waits while its GPU still computes the step before costs no time.
        """
        if self.idle is None or not all(event.query() for event in self.idle):  # type: ignore[no-untyped-call]
            return self.host
        milliseconds: float = self.idle[0].elapsed_time(self.idle[1])
        return min(self.host, milliseconds / 1000)


def timed(items: Iterator[T], device: torch.device) -> Iterator[tuple[T, Wait]]:
    """Yields items, each with the wait for it, to steps that compute on a device."""
    behind: torch.cuda.Event | None = None
    while True:
        start = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        host, begun = time.perf_counter() - start, record_event(device)
        yield item, Wait(host, (behind, begun) if behind and begun else None)
        behind = record_event(device)


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """Records an event behind all that a GPU was given so far."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
