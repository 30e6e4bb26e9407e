"""ResNet-50 and ResNet-101 (arXiv 1512.03385), taken at strides 8, 16 and 32."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from train.model.blocks import RELU, ConvBlock, scaled

RESNET50, RESNET101 = (3, 4, 6, 3), (3, 4, 23, 3)
"""Bottlenecks of the four stages, its Table 1."""
_EXPANSION = 4
_CHANNELS = (64, 128, 256, 512)
"""Of the stages' 3x3 convolutions."""


class Bottleneck(nn.Module):
    """conv1, conv3, conv1 to four times the channels, added to the input, then ReLU.

    The 3x3 has the stride ("v1.5"), as in the weights that everyone starts from. Where shapes differ a 1x1 fits the input.
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * channels
        self.conv1 = ConvBlock(inputs, channels, 1, act=RELU)
        self.conv2 = ConvBlock(channels, channels, 3, stride, act=RELU)
        self.conv3 = ConvBlock(channels, outputs, 1, linear=True)
        fits = stride == 1 and inputs == outputs
        self.downsample = nn.Identity() if fits else ConvBlock(inputs, outputs, 1, stride, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, 4 * channels, H/stride, W/stride]`."""
        return functional.relu(self.downsample(x) + self.conv3(self.conv2(self.conv1(x))))


class ResNet(nn.Module):
    """ResNet; gives features at strides 8, 16 and 32.

    Args:
        blocks: bottlenecks of each stage.
        width: multiplies channels.
        depth: multiplies the bottlenecks, rounded up.
    """

    act = RELU

    def __init__(self, blocks: Sequence[int], width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        inputs = scaled(64, width)
        self.stem = ConvBlock(3, inputs, 7, 2, act=RELU)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.ModuleList()
        for number, (base, count) in enumerate(zip(_CHANNELS, blocks)):
            channels = scaled(base, width)
            stage = []
            for index in range(math.ceil(count * depth)):
                stage.append(Bottleneck(inputs, channels, 2 if number and index == 0 else 1))
                inputs = _EXPANSION * channels
            self.stages.append(nn.Sequential(*stage))
        c3, c4, c5 = (_EXPANSION * scaled(base, width) for base in _CHANNELS[1:])
        self.channels = (c3, c4, c5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[N, 3, H, W]` to C3, C4, C5 (`self.channels`) at strides 8, 16, 32."""
        x = self.pool(self.stem(images))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[1], features[2], features[3]
