"""Top-down neck of YOLOv3, with or without spatial pyramid pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.model.blocks import SPP, ConvBlock, DropBlock, scaled, unit


class Neck(nn.Module):
    """Maps backbone features C3, C4, C5 to pyramid features P5, P4, P3.

    Args:
        inputs: channels of C3, C4, C5.
        width: multiplies the neck's own channels (512, 256, 128 at full width).
        act: activation of every convolution.
        spp: give P5 spatial pyramid pooling and the convolution behind it.
    """

    def __init__(self, inputs: tuple[int, int, int], width: float, act: str, spp: bool = True) -> None:
        super().__init__()
        c3, c4, c5 = inputs
        wide, p5, p4, p3 = (scaled(channels, width) for channels in (1024, 512, 256, 128))
        self.channels = (p5, p4, p3)
        self.p5 = nn.Sequential(
            unit(c5, wide, act) if c5 == wide else _entry(c5, p5, wide, act),
            ConvBlock(wide, p5, 1, act=act),
            *([SPP(), ConvBlock(4 * p5, p5, 1, act=act)] if spp else []),
            ConvBlock(p5, wide, 3, act=act),
            DropBlock(),
            ConvBlock(wide, p5, 1, act=act),
        )
        self.to_p4 = ConvBlock(p5, p4, 1, act=act)
        self.p4 = _stage(p4 + c4, p4, p5, act)
        self.to_p3 = ConvBlock(p4, p3, 1, act=act)
        self.p3 = _stage(p3 + c3, p3, p4, act)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at strides 8, 16, 32 to P5, P4, P3 at strides 32, 16, 8 (`self.channels`)."""
        p5 = self.p5(c5)
        p4 = self.p4(torch.cat([_double(self.to_p4(p5)), c4], dim=1))
        p3 = self.p3(torch.cat([_double(self.to_p3(p4)), c3], dim=1))
        return p5, p4, p3


def _entry(inputs: int, hidden: int, outputs: int, act: str) -> nn.Sequential:
    """The first unit where the backbone's channels are not the neck's (MobileNetV2: 1280 to 512 to 1024)."""
    return nn.Sequential(ConvBlock(inputs, hidden, 1, act=act), ConvBlock(hidden, outputs, 3, act=act))


def _stage(inputs: int, channels: int, wide: int, act: str) -> nn.Sequential:
    """conv1, conv3, DropBlock, unit, conv1."""
    return nn.Sequential(
        ConvBlock(inputs, channels, 1, act=act),
        ConvBlock(channels, wide, 3, act=act),
        DropBlock(),
        unit(wide, wide, act),
        ConvBlock(wide, channels, 1, act=act),
    )


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
