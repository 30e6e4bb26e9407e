"""Times alternatives in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from runtime.benchmark.timing import interleave, milliseconds


def alternate(ways: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """Times each way in turn, so that a busy moment hits all of them alike; returns median milliseconds."""
    times = interleave({name: lambda _, call=call: milliseconds(call) for name, call in ways.items()}, repeats, warm_up)
    return {name: statistics.median(values) for name, values in times.items()}
