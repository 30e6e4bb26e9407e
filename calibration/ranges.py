"""Finds the ranges of activations by their values: growing histograms, and three methods to cut them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Number of a histogram's bins, over [-limit, limit)."""
DETECTIONS = "detections"
"""Method that searches each range by its effect on the detections, see `calibration.range_search`."""
HISTOGRAM_METHODS = ("entropy", "minmax", "percentile")
METHODS = (*HISTOGRAM_METHODS, DETECTIONS)
PERCENTILE = 99.99
"""Share of the values, in percent, that the percentile method keeps."""
_LEVELS = 128
"""Number of magnitudes that a signed 8-bit value has."""
_STEP = 8
"""Bins between two thresholds that the entropy method compares."""


@dataclass(frozen=True)
class Range:
    """Values that 8 bits have to cover; low <= 0 <= high."""

    low: float
    high: float

    @property
    def threshold(self) -> float:
        """The larger magnitude, which a symmetric scale has to cover."""
        return max(-self.low, self.high)

    def union(self, other: Range) -> Range:
        """Returns the smallest range that covers both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def limited(self, threshold: float) -> Range:
        """Returns the part of the range whose magnitudes are at most `threshold`."""
        return Range(max(self.low, -threshold), min(self.high, threshold))


class Histogram:
    """Histogram of an activation's values, collected in one pass over any number of batches.

    When a larger value arrives, the limit doubles and pairs of bins are merged, so that no value is needed twice.

    Attributes:
        counts: float64 `[BINS]` over [-limit, limit).
        limit: end of the last bin; 0 until a value other than zero arrives. Zeros are counted in the middle bin.
        low: smallest value seen, at most 0.
        high: largest value seen, at least 0.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.float64] = np.zeros(BINS)
        self.limit, self.low, self.high = 0.0, 0.0, 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts float32 values of any shape, all finite."""
        flat = np.ascontiguousarray(values, np.float32).reshape(1, -1)
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        if self.limit == 0:
            self.counts[BINS // 2] += flat.size
            return
        # OpenCV counts in float32: exact up to 2^24 values a bin and call, off by 6e-8 beyond.
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
        """Returns the counts of |x| in `BINS / 2` bins over [0, limit)."""
        return self.counts[BINS // 2 :] + self.counts[BINS // 2 - 1 :: -1]

    def summary(self, bins: int = 64) -> tuple[list[float], list[int]]:
        """Returns [low, high] and the counts in a few bins between them, for charts."""
        centers = (np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit
        inside = np.clip(centers, self.low, self.high)  # the outermost bins may lie half outside the values seen
        counts, _ = np.histogram(inside, bins=bins, range=(self.low, self.high), weights=self.counts)
        return [self.low, self.high], [int(count) for count in counts]

    def state(self) -> NDArray[np.float64]:
        """Returns the histogram as one float64 vector `[BINS + 3]`, for the cache."""
        return np.concatenate([[self.limit, self.low, self.high], self.counts])

    @classmethod
    def from_state(cls, state: NDArray[np.float64]) -> Histogram:
        """Restores a histogram from its `state`.

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
    """Finds the range of an activation by its histogram, with one of `HISTOGRAM_METHODS`.

    `minmax` keeps all values, `percentile` all but a few, `entropy` cuts where the least information is lost.
    """
    find: Callable[[Histogram], Range] = {"entropy": _entropy, "minmax": _minmax, "percentile": _percentile}[method]
    return find(histogram)


def _minmax(histogram: Histogram) -> Range:
    return Range(histogram.low, histogram.high)


def _percentile(histogram: Histogram) -> Range:
    """Cuts at the magnitude below which `PERCENTILE` of the values lie."""
    counts = histogram.magnitudes()
    last = int(np.searchsorted(np.cumsum(counts), counts.sum() * PERCENTILE / 100))
    return _clip(histogram, last + 1)


def _entropy(histogram: Histogram) -> Range:
    """Cuts where the 8-bit image of the distribution diverges least from it (Kullback-Leibler)."""
    counts = histogram.magnitudes()
    used = int(np.flatnonzero(counts)[-1]) + 1
    if used <= _LEVELS:
        return _minmax(histogram)
    candidates: Sequence[int] = [*range(_LEVELS, used, _STEP), used]
    return _clip(histogram, min(candidates, key=lambda bins: _divergence(counts, bins)))


def _clip(histogram: Histogram, bins: int) -> Range:
    """Limits the values seen to the first `bins` bins of their magnitudes."""
    return _minmax(histogram).limited(bins * histogram.limit / (BINS // 2))


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """Returns the KL divergence of the distribution clipped to its first `bins` from its image on `_LEVELS` even levels."""
    kept = counts[:bins]
    clipped = kept.copy()
    clipped[-1] += counts[bins:].sum()
    levels = np.arange(bins) * _LEVELS // bins
    sums = np.bincount(levels, weights=kept, minlength=_LEVELS)
    filled = np.bincount(levels, weights=kept > 0, minlength=_LEVELS)
    # A level's count is spread evenly over those of its bins that are not empty.
    image = np.where(kept > 0, sums[levels] / np.maximum(filled[levels], 1), 0.0)
    # Both are shares of all values: were the image scaled up to 1, cutting a few spikes in half would cost nothing.
    p, q = clipped / clipped.sum(), image / clipped.sum()
    here = p > 0
    return float((p[here] * np.log(p[here] / np.maximum(q[here], 1e-12))).sum())
