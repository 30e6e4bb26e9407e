"""Feature pyramid network (arXiv 1612.03144) with RetinaNet's two coarse levels (arXiv 1708.02002, section 4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class FPN(nn.Module):
    """Maps backbone features C3, C4, C5 to P5, P4, P3 of equal channels; plain convolutions with bias.

    Args:
        inputs: channels of C3, C4, C5.
        channels: of every output.
    """

    def __init__(self, inputs: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in reversed(inputs))
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at strides 8, 16, 32 to P5, P4, P3 `[N, channels, H, W]` at strides 32, 16, 8."""
        top = self.lateral[0](c5)
        middle = self.lateral[1](c4) + functional.interpolate(top, scale_factor=2.0, mode="nearest")
        bottom = self.lateral[2](c3) + functional.interpolate(middle, scale_factor=2.0, mode="nearest")
        return self.output[0](top), self.output[1](middle), self.output[2](bottom)


class CoarseLevels(nn.Module):
    """P6, a conv3 of stride 2 on C5, and P7, another on ReLU(P6)."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(inputs, channels, 3, 2, 1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, c5: Tensor) -> tuple[Tensor, Tensor]:
        """C5 `[N, inputs, H, W]` to P7 `[N, channels, ceil(H/4), ceil(W/4)]` and P6 `[N, channels, ceil(H/2), ceil(W/2)]`."""
        p6 = self.p6(c5)
        return self.p7(functional.relu(p6)), p6
