"""Accuracy budgets: the points of AP that an exported file may lose, and the rule that judges a loss."""

from __future__ import annotations

import argparse

BUDGETS = {"fp32": 0.05, "fp16": 0.1, "int8": 0.5}
"""Points of AP that a file of each precision may lose."""

_ROUNDING = 1e-9  # points of AP that float arithmetic may add to a loss of exactly the budget


def is_within(ap_drop: float, budget: float) -> bool:
    """Tells whether a loss keeps within its budget, both in points of AP; a loss of exactly the budget does."""
    return ap_drop <= budget + _ROUNDING


def ap_points(text: str) -> float:
    """Parses a command-line argument in points of AP, 0-100."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"expected points of AP in 0-100, got {text}")
    return value
