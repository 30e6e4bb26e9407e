"""Shared by the tests of `runtime.detect`: the known detection, a white image, and readers of its output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

Command = Callable[..., tuple[int, str, str]]
# What the tiny model finds in a white image of 128 x 64.
RING: dict[str, Any] = {"box": [64.0, 4.0, 96.0, 28.0], "class_id": 1, "class_name": "ring"}

RING_BOX = (32, 18, 16, 12)
"""Left, top, width, height of the `ring` that it finds in a white image of 64 x 64."""


def white(width: int = 128, height: int = 64) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def one_error(err: str) -> str:
    """The single line of an error, which is all there is on stderr."""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err
