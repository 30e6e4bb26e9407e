"""Feature fusion across the pyramid: none, sum, concat, and the paper's adaptively spatial feature fusion (section 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.model.blocks import ConvBlock


class Resize(nn.Module):
    """Brings a feature of one level to the resolution and channels of another.

    Args:
        inputs: channels of the source level.
        outputs: channels of the target level.
        shift: target level minus source level; positive is up-sampling by 2^shift, negative down-sampling (1/2 or 1/4).
    """

    def __init__(self, inputs: int, outputs: int, shift: int, act: str) -> None:
        super().__init__()
        self.shift = shift
        self.conv: nn.Module = nn.Identity()
        if shift < 0:
            self.conv = ConvBlock(inputs, outputs, 3, stride=2, act=act)
        elif inputs != outputs:
            self.conv = ConvBlock(inputs, outputs, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H * 2^shift, W * 2^shift]`."""
        if self.shift == -2:
            x = functional.max_pool2d(x, 3, stride=2, padding=1)
        x = self.conv(x)
        if self.shift > 0:
            x = functional.interpolate(x, scale_factor=2.0**self.shift, mode="nearest")
        return x


class AdaptiveWeights(nn.Module):
    """Fusion weights alpha, beta, gamma of one level: in [0, 1], summing to 1 at each position (paper, Eq. 2).

    Args:
        channels: of the three resized features.
        compress: channels of each feature before the weights are computed (16; 8 where RFB is used).
    """

    def __init__(self, channels: int, compress: int, act: str) -> None:
        super().__init__()
        self.compress = nn.ModuleList(ConvBlock(channels, compress, 1, act=act) for _ in range(3))
        self.weigh = nn.Conv2d(3 * compress, 3, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Three `[N, channels, H, W]` to `[N, 3, H, W]`."""
        compressed = [conv(x) for conv, x in zip(self.compress, features)]
        return torch.softmax(self.weigh(torch.cat(compressed, dim=1)), dim=1)


class LevelFusion(nn.Module):
    """Fuses three pyramid features into the input of one level's head.

    Args:
        channels: of the three levels, coarsest first.
        outputs: of the last conv3.
        level: the one fused into.
        kind: `none` keeps the level's own feature, `sum`, `concat`, or `asff`.
    """

    def __init__(self, channels: tuple[int, int, int], outputs: int, level: int, kind: str, compress: int, act: str) -> None:
        super().__init__()
        self.level, self.kind = level, kind
        own = channels[level]
        if kind != "none":
            self.resize = nn.ModuleList(
                nn.Identity() if source == level else Resize(channels[source], own, level - source, act) for source in range(3)
            )
        if kind == "asff":
            self.weights = AdaptiveWeights(own, compress, act)
        self.expand = ConvBlock(3 * own if kind == "concat" else own, outputs, 3, act=act)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """P5, P4, P3 to `[N, outputs, H, W]` at this level's resolution."""
        out: Tensor = self.expand(self.fuse(features))
        return out

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Computes the fused feature before the last convolution."""
        if self.kind == "none":
            return features[self.level]
        resized = [resize(x) for resize, x in zip(self.resize, features)]
        if self.kind == "concat":
            return torch.cat(resized, dim=1)
        if self.kind == "asff":
            weights = self.weights(resized).split(1, dim=1)
            resized = [x * weight for x, weight in zip(resized, weights)]
        total: Tensor = resized[0] + resized[1] + resized[2]
        return total


@contextlib.contextmanager
def watched(fusions: Sequence[LevelFusion]) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """Records what each ASFF computes while the model runs, so that nothing is computed twice.

    Yields:
        A dict that a run of the model fills, by the index in `fusions`: the weights `[N, 3, H/s, W/s]` and the fused
        features `[N, C, H/s, W/s]` before the last convolution.
    """
    weights: dict[int, Tensor] = {}
    fused: dict[int, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for index, fusion in enumerate(fusions):

            def note_weights(module: nn.Module, inputs: tuple[Tensor], output: Tensor, index: int = index) -> None:
                weights[index] = output

            def note_fused(module: nn.Module, inputs: tuple[Tensor], index: int = index) -> None:
                fused[index] = inputs[0]

            stack.callback(fusion.weights.register_forward_hook(note_weights).remove)
            stack.callback(fusion.expand.register_forward_pre_hook(note_fused).remove)
        yield weights, fused
