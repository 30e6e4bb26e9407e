"""Building blocks shared by backbones, neck, fusion and heads. All tensors are `[N, C, H, W]`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAKY, RELU6, RELU = "leaky", "relu6", "relu"


def scaled(channels: int, width: float) -> int:
    """Scales a channel count by a width multiplier, to a multiple of 8 (at least 8), so that groups of 4 always divide it."""
    return max(8, round(channels * width / 8) * 8)


def activation(kind: str) -> nn.Module:
    """LeakyReLU(0.1) for DarkNet, ReLU6 for MobileNetV2, ReLU for ResNet."""
    if kind == LEAKY:
        return nn.LeakyReLU(0.1, inplace=True)
    return nn.ReLU6(inplace=True) if kind == RELU6 else nn.ReLU(inplace=True)


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, activation; padding keeps the size at stride 1."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, act: str = LEAKY, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-5)
        self.act = nn.Identity() if linear else activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H/stride, W/stride]`."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


def unit(inputs: int, outputs: int, act: str) -> nn.Sequential:
    """conv1 to half the channels, conv3 back: a residual unit's body, used without the addition in the neck."""
    return nn.Sequential(ConvBlock(inputs, outputs // 2, 1, act=act), ConvBlock(outputs // 2, outputs, 3, act=act))


class SPP(nn.Module):
    """Spatial pyramid pooling: the input and its stride-1 max pools of 5, 9 and 13, concatenated in that order."""

    sizes = (5, 9, 13)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, 4C, H, W]`."""
        return torch.cat([x, *(functional.max_pool2d(x, size, 1, size // 2) for size in self.sizes)], dim=1)


class RFB(nn.Module):
    """Receptive field block: four branches of plain convolutions with ever wider reach, concatenated (same shape out)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.branches = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(channels, part, 1)),
                nn.Sequential(nn.Conv2d(channels, part, 1), _plain(part, 3)),
                nn.Sequential(nn.Conv2d(channels, part, 1), _plain(part, 3), _plain(part, 3, dilation=2)),
                nn.Sequential(nn.Conv2d(channels, part, 1), _plain(part, 5), _plain(part, 3, dilation=3)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _plain(channels: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    """A convolution with bias that keeps shape."""
    return nn.Conv2d(channels, channels, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation)


class DropBlock(nn.Module):
    """Drops whole blocks of a feature map in training (arXiv 1810.12890); passes it on unchanged otherwise.

    Each channel draws seeds on its own; a seed drops the block around it, and kept values are scaled to keep the sum.

    Attributes:
        size: side of a block in cells, odd; 0 (as built) drops nothing. Training sets it epoch by epoch.
    """

    def __init__(self, drop: float = 0.1) -> None:
        super().__init__()
        self.drop, self.size = drop, 0

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same."""
        height, width = (int(side) for side in x.shape[2:])
        size = min(self.size, *(side - 1 + side % 2 for side in (height, width)))  # no block is larger than the map
        if not self.training or size < 1:
            return x
        positions = (height - size + 1) * (width - size + 1)
        seeds = torch.rand(x.shape, device=x.device) < self.drop * height * width / (size**2 * positions)
        dropped = functional.max_pool2d(seeds.to(x.dtype), size, stride=1, padding=size // 2)
        kept = 1 - dropped
        return x * kept * (kept.numel() / kept.sum(dtype=torch.float32).clamp(min=1)).to(x.dtype)
