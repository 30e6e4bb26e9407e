"""Chooses the device of a run."""

from __future__ import annotations

import torch

from runtime.errors import MissingComponentError
from train.distributed import World


def choose_device(name: str, world: World | None = None) -> torch.device:
    """Returns the torch device of that name; `auto` is a GPU where there is one, and each rank has its own.

    Raises:
        MissingComponentError: it is not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if world and world.size > 1 and name == "cuda":
        name = f"cuda:{world.local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MissingComponentError(f"device {name!r} is not available here; use --device cpu") from error
    return device
