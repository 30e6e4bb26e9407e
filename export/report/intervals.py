"""Places bounds of ΔAP on an axis whose middle is the budget, so that their side of it shows the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_REACH = 2  # budgets to either side of the middle


@dataclass(frozen=True)
class Interval:
    """Bounds of ΔAP on an axis from 0 to 100, where the budget lies at 50 and a larger loss to its left.

    Attributes:
        lower: position of the lower bound.
        upper: position of the upper bound.
        estimate: position of ΔAP itself.
        zero: position of no loss.
        cut_left: true if the lower bound lies beyond the axis.
        cut_right: true if the upper bound lies beyond the axis.
    """

    lower: float
    upper: float
    estimate: float
    zero: float
    cut_left: bool
    cut_right: bool


def place_bounds(bounds: Mapping[str, float], budget: float) -> Interval:
    """Places bounds on the axis of their budget; a budget of 0 takes the larger bound as its unit.

    Args:
        bounds: `lower`, `upper` and `estimate` of ΔAP in points.
        budget: points that may be lost.
    """
    unit = budget or max(abs(bounds["lower"]), abs(bounds["upper"])) or 1.0

    def position(value: float) -> float:
        return 50 + (value + budget) / unit / _REACH * 50

    lower, upper, estimate = (position(bounds[key]) for key in ("lower", "upper", "estimate"))
    return Interval(_inside(lower), _inside(upper), _inside(estimate), position(0.0), lower < 0, upper > 100)


def _inside(position: float) -> float:
    return min(max(position, 0.0), 100.0)
