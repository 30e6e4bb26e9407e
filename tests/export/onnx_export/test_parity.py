"""Measures of the difference between two runs of a model."""

from __future__ import annotations

import numpy as np
import pytest

from export.onnx_export.parity import compare, worst


def test_differences_are_absolute_and_relative_to_the_reference_scale() -> None:
    reference = [np.array([0.0, -4.0], np.float32), np.array([1.0], np.float32)]
    other = [np.array([0.5, -4.0], np.float32), np.array([1.0], np.float32)]
    first, second = compare(["p5", "p4"], reference, other)
    assert (first.output, first.absolute, first.relative) == ("p5", 0.5, 0.125)
    assert (second.absolute, second.relative) == (0, 0)
    assert worst([second, first]) is first
    assert first.rms == pytest.approx(0.5 / 4)
    assert (second.rms, second.measure("fp16")) == (0, 0)
    assert second.agrees("fp32") and not first.agrees("fp32") and not first.agrees("fp16")


def test_each_precision_has_its_measure() -> None:
    """One wrong value in a large map is too much for float32, and hardly counts in the mean square."""
    reference = np.ones(10_000, np.float32)
    other = reference.copy()
    other[7] = 1.5
    (difference,) = compare(["p5"], [reference], [other])
    assert difference.measure("fp32") == 0.5
    assert difference.measure("fp16") == pytest.approx((0.25 / 10_000) ** 0.5)
    assert difference.agrees("fp16") and not difference.agrees("fp32")


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
    assert not difference.agrees("fp32") and not difference.agrees("fp16")


def test_a_reference_of_zeros_counts_absolutely() -> None:
    (difference,) = compare(["p5"], [np.zeros(2, np.float32)], [np.full(2, 0.25, np.float32)])
    assert difference.relative == 0.25
