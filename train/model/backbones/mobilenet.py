"""MobileNetV2 (arXiv 1801.04381), taken at strides 8, 16 and 32."""

from __future__ import annotations

from torch import Tensor, nn

from train.model.blocks import RELU6, ConvBlock, scaled

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, blocks, stride of the first block), its Table 2."""
_C3_STAGE, _C4_STAGE = 2, 4


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1; the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [ConvBlock(inputs, hidden, 1, act=RELU6)] if expansion != 1 else []
        self.body = nn.Sequential(
            *expand,
            ConvBlock(hidden, hidden, 3, stride, act=RELU6, groups=hidden),
            ConvBlock(hidden, outputs, 1, linear=True),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H/stride, W/stride]`."""
        out: Tensor = self.body(x)
        return x + out if self.adds else out


class MobileNetV2(nn.Module):
    """Features at strides 8, 16 and 32, the last after the 1x1 to 1280 channels. `width` multiplies channels."""

    act = RELU6

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(32, width)
        self.stem = ConvBlock(3, channels, 3, 2, act=RELU6)
        self.stages = nn.ModuleList()
        for expansion, base, count, stride in _STAGES:
            outputs = scaled(base, width)
            blocks = []
            for index in range(count):
                blocks.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
            self.stages.append(nn.Sequential(*blocks))
        self.top = ConvBlock(channels, scaled(1280, width), 1, act=RELU6)
        self.channels = (
            scaled(_STAGES[_C3_STAGE][1], width),
            scaled(_STAGES[_C4_STAGE][1], width),
            scaled(1280, width),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[N, 3, H, W]` to C3, C4, C5 (`self.channels`) at strides 8, 16, 32."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[_C3_STAGE], features[_C4_STAGE], self.top(x)
