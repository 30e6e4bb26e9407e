"""Histograms against numpy on all data at once, and the three cuts against slow definitions of themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from calibration.ranges import BINS, HISTOGRAM_METHODS, PERCENTILE, Histogram, Range, find_range

magnitudes = st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 3.0, 100.0, 1e6, 1e30])
batches = st.lists(
    st.tuples(magnitudes, arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1, 1, width=32))),
    min_size=1,
    max_size=5,
)


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, np.float32))
    return histogram


@settings(max_examples=200)
@given(batches)
def test_a_histogram_in_parts_is_that_of_all_data(parts: list[tuple[float, np.ndarray]]) -> None:
    values = [np.float32(scale) * data for scale, data in parts]
    histogram, everything = histogram_of(*values), np.concatenate(values).astype(np.float64)
    assert histogram.counts.sum() == everything.size
    assert (histogram.low, histogram.high) == (min(everything.min(), 0), max(everything.max(), 0))
    if not everything.any():
        assert histogram.limit == 0
        return
    assert np.abs(everything).max() < histogram.limit
    # Bins are found by the definition, on the final limit; zeros and what lay in merged bins must have ended up there too.
    places = np.floor((everything + histogram.limit) / (2 * histogram.limit) * BINS).astype(int)
    expected = np.bincount(places, minlength=BINS)
    # Rounding may put a value on an edge into the bin next to it; never farther.
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).sum() <= everything.size


@settings(max_examples=50)
@given(batches)
def test_the_state_says_everything(parts: list[tuple[float, np.ndarray]]) -> None:
    histogram = histogram_of(*(np.float32(scale) * data for scale, data in parts))
    copy = Histogram.from_state(histogram.state())
    for one in (histogram, copy):
        one.add(np.array([0.5, -7.0], np.float32))
    assert np.array_equal(copy.state(), histogram.state())


@pytest.mark.parametrize("state", [np.zeros(3), np.full(BINS + 3, np.nan)])
def test_a_damaged_state_is_refused(state: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_state(state)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0], (0, 0)),  # nothing but zeros
        ([3.0], (0, 3)),  # one value
        ([-2.0, -1.0], (-2, 0)),  # negative only: 0 must stay exact
        ([5.0] * 9, (0, 5)),  # constant
        ([-1.0, 0.0, 4.0], (-1, 4)),
    ],
)
@pytest.mark.parametrize("method", HISTOGRAM_METHODS)
def test_small_sets_keep_their_range(method: str, values: list[float], expected: tuple[float, float]) -> None:
    found = find_range(histogram_of(np.array(values)), method)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.threshold == pytest.approx(max(-expected[0], expected[1]))


def test_a_summary_counts_everything_between_its_edges() -> None:
    for data in (np.zeros(7), np.random.default_rng(0).exponential(size=1000), np.array([-3.0, -3.0, -1.0])):
        edges, counts = histogram_of(data).summary()
        assert edges == [min(data.min(), 0), pytest.approx(max(data.max(), 0))]
        assert sum(counts) == data.size
        assert len(counts) == 64


@pytest.mark.parametrize("shape", ["normal", "laplace", "uniform", "exponential"])
def test_percentile_is_numpys_within_a_bin(shape: str) -> None:
    data = getattr(np.random.default_rng(1), shape)(size=200_000).astype(np.float32)
    histogram = histogram_of(*np.array_split(data, 7))
    exact = np.percentile(np.abs(data), PERCENTILE, method="inverted_cdf")
    found = find_range(histogram, "percentile").threshold
    assert exact <= found <= exact + 2 * histogram.limit / BINS * 1.001


def slow_entropy(counts: np.ndarray) -> int:
    """The number of bins to keep, by the definition, in loops: quantize what is kept to 128 levels, spread each level over
    the bins that hold something, compare with the distribution whose last bin took what was cut."""
    used = max(i for i, count in enumerate(counts) if count) + 1
    best, least = used, math.inf
    for bins in [*range(128, used, 8), used]:
        p = [float(count) for count in counts[:bins]]
        p[-1] += float(sum(counts[bins:]))
        q = [0.0] * bins
        for level in range(128):
            members = [i for i in range(bins) if i * 128 // bins == level]
            alive = [i for i in members if counts[i] > 0]
            for i in alive:
                q[i] = sum(float(counts[m]) for m in members) / len(alive)
        divergence = 0.0
        for i in range(bins):
            if p[i] > 0:
                divergence += p[i] / sum(p) * math.log(p[i] / sum(p) / max(q[i] / sum(p), 1e-12))
        if divergence < least:
            best, least = bins, divergence
    return best


@pytest.mark.parametrize(("shape", "scale"), [("normal", 0.1), ("laplace", 0.04), ("exponential", 0.03)])
def test_entropy_is_its_slow_definition(shape: str, scale: float) -> None:
    # A wide histogram, of which the data fill few bins, so that the loops stay affordable.
    data = getattr(np.random.default_rng(2), shape)(scale=scale, size=3000)
    histogram = Histogram()
    histogram.add(np.array([4.0], np.float32))  # sets the limit
    histogram.counts[:], histogram.high = 0, 0.0
    histogram.add(data.astype(np.float32))
    found = find_range(histogram, "entropy").threshold
    expected = slow_entropy(histogram.magnitudes()) * histogram.limit / (BINS // 2)
    assert found == pytest.approx(min(expected, np.abs(data).max()), rel=1e-6)


def test_entropy_on_known_distributions() -> None:
    rng = np.random.default_rng(3)
    uniform = rng.uniform(-1, 1, 400_000)
    assert find_range(histogram_of(uniform), "entropy").threshold > 0.97  # every value matters alike
    outlier = np.append(rng.normal(size=400_000), 100.0)
    assert 2.5 < find_range(histogram_of(outlier), "entropy").threshold < 20  # one in 400,000 does not
    assert find_range(histogram_of(outlier), "minmax").threshold == pytest.approx(100)
    for shape in ("normal", "laplace"):
        data = getattr(rng, shape)(size=400_000)
        assert 2.5 < find_range(histogram_of(data), "entropy").threshold <= np.abs(data).max() * (1 + 1e-6)


def test_a_union_covers_both() -> None:
    assert Range(-1, 2).union(Range(-3, 1)) == Range(-3, 2)
