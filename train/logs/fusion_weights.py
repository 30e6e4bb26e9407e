"""Collects the weights with which ASFF fuses the levels, over the images of an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.distributed import World
from train.model import DetectorModel
from train.model.fusion import LevelFusion

LEVELS = ("P5", "P4", "P3")
"""Fused levels, and those that they are fused from."""
FUSION_COLUMNS = tuple(f"{level}_from_{source}" for level in LEVELS for source in LEVELS)
"""Columns of `metrics.csv`: the mean share in a fused level of a level of the neck."""


class FusionWeights:
    """Mean weights of each image, over the positions of its input.

    Attributes:
        samples: by column, float64 `[images]` in [0, 1]; empty for a model without ASFF, and in all processes but the main one.
    """

    def __init__(self) -> None:
        self.samples: dict[str, NDArray[np.float64]] = {}
        self._seen: dict[int, list[Tensor]] = {}

    def note(self, level: int, weights: Tensor) -> None:
        """Notes the weights `[N, 3, H, W]` of some images for a level."""
        self._seen.setdefault(level, []).append(weights.detach().float().mean(dim=(2, 3)))

    def gather(self, world: World) -> None:
        """Puts together what all ranks have noted."""
        own = {level: torch.cat(parts).double().cpu().numpy() for level, parts in self._seen.items()}
        shares = world.gather(own)
        for level in sorted({level for share in shares for level in share}):
            joined = np.concatenate([share[level] for share in shares if level in share])
            columns = FUSION_COLUMNS[level * len(LEVELS) : (level + 1) * len(LEVELS)]
            self.samples.update({name: joined[:, source] for source, name in enumerate(columns)})

    def means(self) -> dict[str, float]:
        """Returns the mean of each column over the images."""
        return {name: float(values.mean()) for name, values in self.samples.items()}


@contextlib.contextmanager
def watched_weights(model: DetectorModel) -> Iterator[FusionWeights]:
    """Collects the fusion weights of all that the model computes in the block."""
    found = FusionWeights()
    with contextlib.ExitStack() as stack:
        for level, fusion in enumerate(model.fusions()):
            if fusion.kind == "asff":
                stack.callback(_watch(fusion, level, found))
        yield found


def _watch(fusion: LevelFusion, level: int, found: FusionWeights) -> Callable[[], None]:
    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        found.note(level, output)

    return fusion.weights.register_forward_hook(note).remove
