"""Changes a recipe from the command line so that what depends on the change follows it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from runtime.errors import InputError
from train.config import PARTS, TrainConfig

_T = TypeVar("_T", int, float)

AUTO = "auto"
_PHASES = ("warmup_epochs", "plain_epochs", "fixed_epochs")


def with_size(config: TrainConfig, size: int) -> TrainConfig:
    """Changes the input side; the sides to draw from scale with it, and YOLOv3's anchors, which are pixels of the input."""
    ratio, model = size / config.size, config.model
    sizes = tuple(sorted({max(round(side * ratio / 32), 1) * 32 for side in config.sizes}))
    if model.detector == "yolov3" and ratio != 1:
        anchors = tuple((round(width * ratio, 1), round(height * ratio, 1)) for width, height in model.anchors)
        model = dataclasses.replace(model, anchors=anchors)
    return config.replace(size=size, sizes=sizes, model=model)


def with_epochs(config: TrainConfig, epochs: int) -> TrainConfig:
    """Changes the length; the schedule keeps its shape, and no phase that the recipe has is lost.

    One or two epochs have no tail; the cosine ends at the final rate all the same.
    """
    share = epochs / config.epochs
    spans = {name: _scaled(getattr(config, name), share) for name in _PHASES}
    spans["tail_epochs"] = _scaled(config.tail_epochs, share) if epochs > 2 else 0
    # Rounded up: a weak model is not disturbed earlier than the recipe does it.
    starts = {-(-start * epochs // config.epochs): blocks for start, blocks in config.dropblock}
    return config.replace(epochs=epochs, dropblock=tuple(starts.items()), **spans)


def _scaled(span: int, share: float) -> int:
    return max(round(span * share), 1) if span else 0


def with_anchors(config: TrainConfig, anchors: Sequence[str | tuple[float, float]]) -> TrainConfig:
    """Takes the anchors of `--anchors`: `auto` alone, or pairs.

    Raises:
        InputError: not as many as the model has, or both kinds.
    """
    if list(anchors) == [AUTO]:
        return config.replace(anchor_source=AUTO)
    given = tuple(item for item in anchors if not isinstance(item, str))
    wanted = len(config.model.anchors)
    if len(given) != len(anchors) or len(given) != wanted:
        raise InputError(f"--anchors: expected {AUTO}, or {wanted} pairs W,H, got {len(anchors)} values")
    ordered = tuple(sorted(given, key=lambda side: side[0] * side[1]))
    return config.replace(anchor_source="given", model=dataclasses.replace(config.model, anchors=ordered))


def anchor(text: str) -> str | tuple[float, float]:
    """Parses a value of `--anchors`."""
    if text == AUTO:
        return AUTO
    sides = text.split(",")
    try:
        width, height = (float(side) for side in sides)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {AUTO} or W,H in pixels, such as 12.5,20, got {text}") from None
    if not (0 < width < 1e5 and 0 < height < 1e5):
        raise argparse.ArgumentTypeError(f"expected sides above 0, got {text}")
    return width, height


def parts(mark: str, number: Callable[[str], _T], default: _T | None = None) -> Callable[[str], tuple[tuple[str, _T], ...]]:
    """Makes a parser of `backbone:5,neck`: parts of a model, each with a number.

    Args:
        mark: between a part and its number.
        number: parses it.
        default: number of a part without one; None: each needs one.
    """

    def parse(text: str) -> tuple[tuple[str, _T], ...]:
        found: dict[str, _T] = {}
        for item in text.split(","):
            name, given, value = item.strip().partition(mark)
            if name not in PARTS or name in found or not (given or default is not None):
                example = f"{PARTS[0]}{mark}N" if default is None else f"{PARTS[0]} or {PARTS[0]}{mark}N"
                raise argparse.ArgumentTypeError(
                    f"expected {example}, separated by commas, each of {', '.join(PARTS)} at most once, got {text}"
                )
            found[name] = number(value) if given or default is None else default
        return tuple(sorted(found.items(), key=lambda item: PARTS.index(item[0])))

    return parse
