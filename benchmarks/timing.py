"""How everything here is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def alternate(ways: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """Median milliseconds of each way; they take turns, so that a busy moment hits all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_up + repeats):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}
