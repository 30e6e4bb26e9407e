"""Ranges of activations: histograms that grow with what they see, and three ways to cut them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Of a histogram, over [-limit, limit)."""
METHODS = ("entropy", "minmax", "percentile")
PERCENTILE = 99.99
"""Share of the values, in percent, that the percentile method keeps."""
_LEVELS = 128
"""Magnitudes that 8 signed bits can tell apart."""
_STEP = 8
"""Bins between two thresholds that the entropy method compares."""


@dataclass(frozen=True)
class Range:
    """What 8 bits have to cover, low <= 0 <= high."""

    low: float
    high: float

    @property
    def threshold(self) -> float:
        """The larger magnitude: what a symmetric scale covers."""
        return max(-self.low, self.high)

    def union(self, other: Range) -> Range:
        """The smallest range that covers both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


class Histogram:
    """How often an activation took which value, in one pass over any number of batches.

    The limit doubles when a larger value arrives, and pairs of bins become one, so that nothing is ever seen twice.

    Attributes:
        counts: float64 `[BINS]` over [-limit, limit).
        limit: 0 before the first value that is not zero; until then the middle bin counts zeros, as it does later.
        low, high: smallest and largest value seen, at most and at least 0.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.float64] = np.zeros(BINS)
        self.limit, self.low, self.high = 0.0, 0.0, 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count float32 values of any shape, all finite."""
        flat = np.ascontiguousarray(values, np.float32).reshape(1, -1)
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        if self.limit == 0:
            self.counts[BINS // 2] += flat.size
            return
        # OpenCV hands counts out as float32: exact up to 2^24 a bin and call, 6e-8 off beyond.
        self.counts += cv2.calcHist([flat], [0], None, [BINS], [-self.limit, self.limit]).reshape(-1)

    def _grow(self, magnitude: float) -> None:
        if magnitude == 0:
            return
        if self.limit == 0:
            self.limit = float(np.nextafter(np.float32(magnitude), np.float32(np.inf)))
            return
        while magnitude >= self.limit:
            halves = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(BINS // 4), halves, np.zeros(BINS // 4)])
            self.limit *= 2

    def magnitudes(self) -> NDArray[np.float64]:
        """Counts of |x| in `BINS / 2` bins over [0, limit)."""
        return self.counts[BINS // 2 :] + self.counts[BINS // 2 - 1 :: -1]

    def summary(self, bins: int = 64) -> tuple[list[float], list[int]]:
        """[low, high] edges and counts in a few bins between them, for images."""
        centers = (np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit
        inside = np.clip(centers, self.low, self.high)  # half of the outermost bins may lie beyond what was seen
        counts, _ = np.histogram(inside, bins=bins, range=(self.low, self.high), weights=self.counts)
        return [self.low, self.high], [int(count) for count in counts]

    def state(self) -> NDArray[np.float64]:
        """Everything in one float64 vector, for a cache."""
        return np.concatenate([[self.limit, self.low, self.high], self.counts])

    @classmethod
    def from_state(cls, state: NDArray[np.float64]) -> Histogram:
        """The inverse of `state`.

        Raises:
            ValueError: not such a vector.
        """
        if state.shape != (BINS + 3,) or not np.isfinite(state).all():
            raise ValueError("not a histogram")
        histogram = cls()
        histogram.limit, histogram.low, histogram.high = (float(value) for value in state[:3])
        histogram.counts = np.array(state[3:], np.float64)
        return histogram


def find_range(histogram: Histogram, method: str) -> Range:
    """What to cover of an activation's values: all of them (`minmax`), all but a few (`percentile`), or as much as loses the
    least information (`entropy`)."""
    cut: Callable[[Histogram], float] = {"minmax": _largest, "percentile": _percentile, "entropy": _least_divergence}[method]
    threshold = cut(histogram)
    return Range(max(histogram.low, -threshold), min(histogram.high, threshold))


def _largest(histogram: Histogram) -> float:
    return max(-histogram.low, histogram.high)


def _percentile(histogram: Histogram) -> float:
    """The magnitude below which `PERCENTILE` of the values lie."""
    counts = histogram.magnitudes()
    place = int(np.searchsorted(np.cumsum(counts), counts.sum() * PERCENTILE / 100))
    return min((place + 1) * histogram.limit / len(counts), _largest(histogram))


def _least_divergence(histogram: Histogram) -> float:
    """The threshold whose 8-bit image of the distribution diverges least from it (Kullback-Leibler)."""
    counts = histogram.magnitudes()
    used = int(np.flatnonzero(counts)[-1]) + 1
    if used <= _LEVELS:
        return _largest(histogram)
    candidates: Sequence[int] = [*range(_LEVELS, used, _STEP), used]
    best = min(candidates, key=lambda bins: _divergence(counts, bins))
    return min(best * histogram.limit / len(counts), _largest(histogram))


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """KL divergence of the distribution clipped to its first `bins` from its image on `_LEVELS` evenly spaced levels."""
    kept = counts[:bins]
    clipped = kept.copy()
    clipped[-1] += counts[bins:].sum()
    levels = np.arange(bins) * _LEVELS // bins
    sums = np.bincount(levels, weights=kept, minlength=_LEVELS)
    filled = np.bincount(levels, weights=kept > 0, minlength=_LEVELS)
    # Each level stands for all values that fall on it, alike; where there was nothing, nothing is said.
    image = np.where(kept > 0, sums[levels] / np.maximum(filled[levels], 1), 0.0)
    # Both as shares of everything: were the image scaled up to 1, a few spikes could be cut in half at no cost.
    p, q = clipped / clipped.sum(), image / clipped.sum()
    here = p > 0
    return float((p[here] * np.log(p[here] / np.maximum(q[here], 1e-12))).sum())
