"""A small training with everything random in it, and comparisons of what runs leave."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.small_models import tiny
from train import checkpoint
from train.config import TrainConfig
from train.run.options import RunOptions


def random_recipe(**changes: object) -> TrainConfig:
    """A recipe of 4 steps an epoch on 8 images, with DropBlock, mixup, augmentation and two input sizes."""
    config = tiny(rfb=True).replace(batch=2, sizes=(64, 96), dropblock=((0, (1, 1, 3)),), plain_epochs=0, fixed_epochs=0)
    return config.replace(**changes)


def run_options(data: Path, output: Path, **changes: object) -> RunOptions:
    plain = {"workers": 0, "progress": False, "save_steps": 3, "keep": 3, "device": "cpu"}
    return RunOptions(data=data, output=output, **(plain | changes))  # type: ignore[arg-type]


def difference(one: Path, other: Path) -> list[str]:
    """Names what two runs' folders differ in: weights, optimizer and metrics, bit by bit."""
    ends = [checkpoint.load(folder / "last.pt") for folder in (one, other)]
    found = [name for name, value in ends[0].weights.items() if not torch.equal(value, ends[1].weights[name])]
    found += [name for name in ("epoch", "best_ap", "progress", "config") if getattr(ends[0], name) != getattr(ends[1], name)]
    found += ["optimizer"] * (not _equal(ends[0].optimizer, ends[1].optimizer))
    best = [checkpoint.load(folder / "best.pt").weights for folder in (one, other)]
    found += ["best.pt"] * (not _equal(*best))
    return found + ["metrics.csv"] * ((one / "metrics.csv").read_bytes() != (other / "metrics.csv").read_bytes())


def _equal(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) else one == other
