"""DarkNet-53 (YOLOv3)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from train.model.blocks import LEAKY, ConvBlock, scaled, unit

_STAGES = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
"""(channels, residual units) of the five stages."""


class Residual(nn.Module):
    """x + conv3(conv1(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = unit(channels, channels, LEAKY)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        out: Tensor = x + self.body(x)
        return out


class DarkNet53(nn.Module):
    """DarkNet-53; gives features at strides 8, 16 and 32.

    Args:
        width: multiplies channels.
        depth: multiplies the residual units of a stage, rounded up.
    """

    act = LEAKY

    def __init__(self, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        channels = scaled(32, width)
        self.stem = ConvBlock(3, channels, 3)
        self.stages = nn.ModuleList()
        for base, count in _STAGES:
            outputs = scaled(base, width)
            residuals = [Residual(outputs) for _ in range(math.ceil(count * depth))]
            self.stages.append(nn.Sequential(ConvBlock(channels, outputs, 3, stride=2), *residuals))
            channels = outputs
        c3, c4, c5 = (scaled(base, width) for base, _ in _STAGES[-3:])
        self.channels = (c3, c4, c5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[N, 3, H, W]` to C3, C4, C5 (`self.channels`) at strides 8, 16, 32."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[2], features[3], features[4]
