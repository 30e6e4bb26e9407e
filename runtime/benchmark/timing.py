"""Times alternatives on busy machines: they run interleaved, and every time comes with its spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from tqdm import tqdm

T = TypeVar("T")

_SHOWN = (5, 50, 95, 99)


def interleave(ways: Mapping[str, Callable[[int], T]], rounds: int, warm_up: int, label: str = "") -> dict[str, list[T]]:
    """Calls each alternative once a round, for `rounds` rounds after `warm_up` more that do not count.

    A call gets the round's number, from 0. Every other round runs in reverse order, so that a busy moment hits all
    alternatives alike and none always follows the same other one.

    Args:
        ways: the alternatives, by name.
        rounds: number of rounds that count.
        warm_up: number of rounds before them.
        label: of the progress bar; without one there is none.

    Returns:
        The results of each alternative, one a round.
    """
    found: dict[str, list[T]] = {name: [] for name in ways}
    quiet = None if label else True
    for turn in tqdm(range(warm_up + rounds), desc=label, unit="round", disable=quiet, leave=False):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            value = ways[name](turn)
            if turn >= warm_up:
                found[name].append(value)
    return found


def milliseconds(call: Callable[[], object]) -> float:
    """Times one call, in milliseconds."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def spread(values: Sequence[float]) -> dict[str, float]:
    """Computes minimum, maximum, median, and those of the percentiles 5, 95 and 99 for which there are enough values.

    A percentile needs at least one value beyond it: 95 takes 20 values, 99 takes 100.

    Returns:
        By name in ascending order: `min`, `p5`, `median`, `p95`, `p99`, `max`.
    """
    told = [p for p in _SHOWN if p == 50 or min(p, 100 - p) * len(values) >= 100]
    names = ["min", *("median" if p == 50 else f"p{p}" for p in told), "max"]
    return dict(zip(names, np.percentile(values, [0, *told, 100]).tolist()))


def ends(figures: Mapping[str, float]) -> tuple[str, str]:
    """Names the ends of a `spread`: `p5` and `p95`, or `min` and `max` where there are few values."""
    return ("p5", "p95") if "p5" in figures else ("min", "max")
