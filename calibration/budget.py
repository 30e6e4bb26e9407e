"""Accuracy budgets: the points of AP that an exported file may lose, and the rule that judges a loss by its evidence."""

from __future__ import annotations

import argparse
import math
from statistics import NormalDist

from runtime.evaluation.bootstrap import Bounds

BUDGETS = {"fp32": 0.05, "fp16": 0.1, "int8": 0.5}
"""Points of AP that a file of each precision may lose."""
CONFIDENCE = 0.95
"""Confidence of each bound that a verdict rests on."""

PASSED, FAILED, UNDECIDED = "passed", "failed", "undecided"

_ROUNDING = 1e-9  # points of AP that float arithmetic may add to a loss of exactly the budget
_POWER = 0.8  # chance that the number of images named for an undecided file does decide it
_MOST_TIMES = 100  # as many images as there are: more is no advice


def judge(bounds: Bounds, budget: float) -> str:
    """Judges ΔAP by its bounds.

    Args:
        bounds: of ΔAP in points.
        budget: points of AP that may be lost.

    Returns:
        `passed` if the lower bound keeps within the budget, `failed` if the upper bound does not, else `undecided`.
    """
    if bounds.lower >= -budget - _ROUNDING:
        return PASSED
    return FAILED if bounds.upper < -budget - _ROUNDING else UNDECIDED


def images_to_decide(bounds: Bounds, budget: float, images: int) -> int | None:
    """Estimates how many images would decide the verdict with a chance of 80 %, were the true ΔAP the one measured.

    Args:
        bounds: of ΔAP in points.
        budget: points of AP that may be lost.
        images: number of images that ΔAP was measured on.

    Returns:
        The number in two digits; None beyond a hundred times `images`: the loss is the budget, as far as can be seen.
    """
    distance = abs(bounds.estimate + budget)
    needed = NormalDist().inv_cdf(bounds.confidence) + NormalDist().inv_cdf(_POWER)
    count = images * (needed * bounds.standard_error / distance) ** 2 if distance > _ROUNDING else math.inf
    if count > _MOST_TIMES * images:
        return None
    count = max(count, images + 1)
    step = int(10 ** max(0, len(str(math.ceil(count))) - 2))
    return math.ceil(count / step) * step


def ap_points(text: str) -> float:
    """Parses a command-line argument in points of AP, 0-100."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"expected points of AP in 0-100, got {text}")
    return value
