"""Deformable convolution, written with GridSample."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.losses.head_output import upcast


class DeformConv(nn.Module):
    """3x3 deformable convolution (DCNv1: no modulation), padding 1, expressed through GridSample so that it exports anywhere.

    Each group of channels is sampled bilinearly (zero outside the map) at the displaced positions of its nine taps; a 1x1
    convolution then applies the weights to the samples.
    """

    taps = 9

    def __init__(self, channels: int, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Convolves at displaced taps; same shape out.

        Args:
            x: `[N, C, H, W]`.
            offsets: `[N, groups * 9 * 2, H, W]`, displacement of each tap in cells, channels ordered (group, tap row-major,
                [dy, dx]).
        """
        channels, height, width = (int(side) for side in x.shape[1:])
        # The grid is float32 at least, whatever the activations are: in FP16 it would step by up to 0.06 px on wide maps.
        grid = self._grid(upcast(offsets), height, width)
        maps = x.reshape(-1, channels // self.groups, height, width)
        sampled = functional.grid_sample(upcast(maps), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        # [N * groups, C / groups, 9 * H, W] is, read in order, [N, C * 9, H, W] with taps fastest: the weight's own layout.
        columns = sampled.to(x.dtype).reshape(-1, channels * self.taps, height, width)
        return functional.conv2d(columns, self.weight.reshape(channels, channels * self.taps, 1, 1), self.bias)

    def _grid(self, offsets: Tensor, height: int, width: int) -> Tensor:
        """Sampling positions `[N * groups, 9 * H, W, 2]` (x, y) in [-1, 1], of the offsets' type."""
        steps = offsets.reshape(-1, self.taps, 2, height, width).permute(0, 1, 3, 4, 2)  # [N * groups, 9, H, W, (dy, dx)]
        ys = torch.arange(height, dtype=offsets.dtype, device=offsets.device)
        xs = torch.arange(width, dtype=offsets.dtype, device=offsets.device)
        reach = torch.arange(-1, 2, dtype=offsets.dtype, device=offsets.device)
        row = ys.reshape(1, 1, -1, 1) + reach.repeat_interleave(3).reshape(1, -1, 1, 1)  # [1, 9, H, 1]
        column = xs.reshape(1, 1, 1, -1) + reach.repeat(3).reshape(1, -1, 1, 1)  # [1, 9, 1, W]
        # Without aligned corners, the center of pixel p is at (2p + 1) / size - 1.
        x = (2 * (steps[..., 1] + column) + 1) / width - 1
        y = (2 * (steps[..., 0] + row) + 1) / height - 1
        return torch.stack([x, y], dim=-1).reshape(-1, self.taps * height, width, 2)
