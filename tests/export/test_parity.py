from __future__ import annotations

import numpy as np
import pytest

from export.parity import compare, worst


def test_differences_are_absolute_and_relative_to_the_reference_scale() -> None:
    reference = [np.array([0.0, -4.0], np.float32), np.array([1.0], np.float32)]
    other = [np.array([0.5, -4.0], np.float32), np.array([1.0], np.float32)]
    first, second = compare(["p5", "p4"], reference, other)
    assert (first.output, first.absolute, first.relative) == ("p5", 0.5, 0.125)
    assert (second.absolute, second.relative) == (0, 0)
    assert worst([second, first]) is first
    assert first.within(0.125)
    assert not first.within(0.1249)


@pytest.mark.parametrize(
    "other",
    [
        np.zeros(3, np.float32),  # another shape
        np.array([np.nan, 0], np.float32),
        np.array([np.inf, 0], np.float32),
    ],
)
def test_what_cannot_be_compared_is_infinitely_far(other: np.ndarray) -> None:
    (difference,) = compare(["p5"], [np.zeros(2, np.float32)], [other])
    assert not difference.within(1e9)


def test_a_reference_of_zeros_counts_absolutely() -> None:
    (difference,) = compare(["p5"], [np.zeros(2, np.float32)], [np.full(2, 0.25, np.float32)])
    assert difference.relative == 0.25
