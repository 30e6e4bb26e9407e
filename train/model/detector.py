"""Defines the interface that training, validation and export use of any detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Optional

from torch import Tensor, nn

from runtime.errors import InputError
from runtime.spec import Anchors
from train.losses.head_output import upcast
from train.losses.packing import Matcher, PackedTargets
from train.model.fusion import LevelFusion, watched


class DetectorModel(nn.Module, ABC):
    """Base of the detectors. Build one with `train.model.build_model`.

    Attributes:
        components: names of the parts that `loss` returns, without `total`.
        strides: of the output levels, coarsest first.
        level_anchors: (width, height) in pixels of the anchors of each of them.
        fusion: fusion module of each fused level, coarsest first (strides 32, 16, 8).
        num_classes: C.
        compiled: a compiled form of `outputs` that `loss` uses, or None.
    """

    compiled: Optional[Callable[[Tensor], Any]] = None
    components: ClassVar[tuple[str, ...]]
    strides: tuple[int, ...]
    level_anchors: Anchors
    fusion: nn.ModuleList
    num_classes: int

    @abstractmethod
    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes P5, P4, P3 before fusion from normalized images float `[N, 3, H, W]`, sides multiples of 32."""

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """Computes the exported contract: the raw float32 map of each level."""

    @abstractmethod
    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decodes raw maps to `[N, total anchors, 5 + C]`: cx, cy, w, h in input pixels, objectness and class probabilities.

        Levels in order; within a level anchor-major, then row, then column.
        """

    def outputs(self, images: Tensor) -> Any:
        """Computes what the loss compares with its targets; by itself, so that it can be compiled."""
        return self.maps(images)

    @property
    @abstractmethod
    def matcher(self) -> Matcher:
        """Makes the targets of `loss` from labels, apart from the model."""

    @abstractmethod
    def normalizer(self, images: Tensor, targets: PackedTargets) -> int:
        """Returns what these images add to the number that the loss of their whole batch is divided by.

        Args:
            images: as for `loss`; their values do not matter.
            targets: from `matcher`, on any device.
        """

    @abstractmethod
    def loss(self, images: Tensor, targets: Tensor | PackedTargets, normalizer: Optional[Tensor] = None) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            images: normalized, float `[N, 3, H, W]`.
            targets: from `matcher`, on the device of the images; or labels `[N, M, 5 or 6]` (class, cx, cy, w, h in input
                pixels[, mixing weight]; all-zero rows are padding), which are matched first: a GPU waits for that.
            normalizer: scalar to divide the sums by where these images are a part of a batch, see `normalizer`; None for
                their own.

        Returns:
            Scalars by the names of `components`, and their `total`.
        """

    def forward(
        self, images: Tensor, targets: Optional[Tensor | PackedTargets] = None, normalizer: Optional[Tensor] = None
    ) -> Tensor | dict[str, Tensor]:
        """Returns decoded predictions (see `decode`); with targets or labels, the losses (see `loss`)."""
        if targets is not None:
            return self.loss(images, targets, normalizer)
        return self.decode(self.maps(images))

    def inspect(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Computes the maps and the fusion weights and activations, coarsest fused level first (strides 32, 16, 8).

        Returns:
            maps: see `maps`.
            weights: float32 `[N, 3, H/s, W/s]`, shares in [0, 1] of levels 5, 4, 3 (alpha, beta, gamma), their sum 1.
            activations: float32 `[N, 1, H/s, W/s]`, mean over channels of the absolute fused feature before the last conv3.

        Raises:
            InputError: the model has no ASFF.
        """
        self.check_inspectable()
        fusions = self.fusions()
        with watched(fusions) as (weights, fused):
            maps = self.maps(images)
        levels = range(len(fusions))
        activations = [upcast(fused[level].abs().mean(dim=1, keepdim=True)) for level in levels]
        return maps, [upcast(weights[level]) for level in levels], activations

    def check_inspectable(self) -> None:
        """Raises InputError unless the levels are fused by ASFF, which alone has weights to look at."""
        kinds = {fusion.kind for fusion in self.fusions()} or {"none"}
        if kinds != {"asff"}:
            found = ", ".join(sorted(kinds))
            raise InputError(f"fusion weights: expected a model with fusion asff, this one has {found}; choose another model")

    def fusions(self) -> list[LevelFusion]:
        """The fusion of each fused level, coarsest first."""
        return [fusion for fusion in self.fusion if isinstance(fusion, LevelFusion)]
