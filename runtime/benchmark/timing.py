"""Timing on machines that are never quiet: what is compared takes turns, and every figure says how far it spreads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from tqdm import tqdm

T = TypeVar("T")

_SHOWN = (5, 50, 95, 99)


def interleave(ways: Mapping[str, Callable[[int], T]], rounds: int, warm_up: int, label: str = "") -> dict[str, list[T]]:
    """What each way gave in each of `rounds` rounds, after `warm_up` more that do not count.

    A round calls each way once with the round's number, from 0; every other round in reverse order. So a busy moment hits
    all ways alike, and none always comes after the same other one.

    Args:
        label: of the progress bar; none is shown without.
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
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def spread(values: Sequence[float]) -> dict[str, float]:
    """The least and the largest of the values, their median, and those of the percentiles 5, 95 and 99 that so many tell.

    A percentile is told if at least one value in so many lies beyond it: 95 takes 20 values, 99 takes 100.

    Returns:
        by name in ascending order: `min`, `p5`, `median`, `p95`, `p99`, `max`.
    """
    told = [p for p in _SHOWN if p == 50 or min(p, 100 - p) * len(values) >= 100]
    names = ["min", *("median" if p == 50 else f"p{p}" for p in told), "max"]
    return dict(zip(names, np.percentile(values, [0, *told, 100]).tolist()))


def ends(figures: Mapping[str, float]) -> tuple[str, str]:
    """The names of the two figures of a `spread` between which most values lie: `p5` and `p95`, `min` and `max` of a few."""
    return ("p5", "p95") if "p5" in figures else ("min", "max")
