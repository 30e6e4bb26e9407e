"""Detection head of one level: anchor guiding, feature adaption, prediction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from train.losses.head_output import HeadOutput
from train.model.blocks import RFB
from train.model.deform_conv import DeformConv

GUIDED_ANCHORS = 4
"""Anchors of a guided head: 3 from the base anchors and 1 anchor-free."""
_PRIOR = 0.01  # initial objectness: nearly every anchor is background


class FeatureAdaption(nn.Module):
    """Deformable convolution whose offsets come from the guided anchors' shapes (4 groups: one per anchor).

    Args:
        rfb: put a receptive field block before it (ASFF*).
    """

    def __init__(self, channels: int, rfb: bool = False) -> None:
        super().__init__()
        self.rfb = RFB(channels) if rfb else nn.Identity()
        self.offsets = nn.Conv2d(2 * GUIDED_ANCHORS, GUIDED_ANCHORS * DeformConv.taps * 2, 1, groups=GUIDED_ANCHORS)
        self.conv = DeformConv(channels, GUIDED_ANCHORS)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Adapts `x` `[N, C, H, W]` by `guide` `[N, 8, H, W]`, which gets no gradient from here; same shape out."""
        out: Tensor = self.conv(self.rfb(x), self.offsets(guide.detach()))
        return out


class Head(nn.Module):
    """Head of one level.

    Args:
        channels: of the input.
        num_classes: C.
        base_anchors: 3 without guiding.
        guided: predict guided anchors (3 + 1).
        adaption: deform the feature by them (DarkNet variants).
        rfb: of the feature adaption.
    """

    def __init__(
        self, channels: int, num_classes: int, base_anchors: int, guided: bool, adaption: bool, rfb: bool = False
    ) -> None:
        super().__init__()
        anchors = GUIDED_ANCHORS if guided else base_anchors
        self.guide = nn.Conv2d(channels, 2 * anchors, 1) if guided else None
        self.adapt = FeatureAdaption(channels, rfb) if guided and adaption else None
        self.predict = nn.Conv2d(channels, anchors * (5 + num_classes), 1)
        self._initialize(anchors, num_classes)

    def _initialize(self, anchors: int, num_classes: int) -> None:
        """Starts from the base anchors, undisplaced taps and a low objectness."""
        small = [self.predict, self.guide, self.adapt.offsets if self.adapt else None]
        for conv in filter(None, small):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        with torch.no_grad():
            assert self.predict.bias is not None
            self.predict.bias.view(anchors, 5 + num_classes)[:, 4] = -math.log((1 - _PRIOR) / _PRIOR)

    def forward(self, x: Tensor) -> HeadOutput:
        """`[N, channels, H, W]` to this level's `HeadOutput`."""
        guide = self.guide(x) if self.guide is not None else None
        if self.adapt is not None and guide is not None:
            x = self.adapt(x, guide)
        return HeadOutput(self.predict(x), guide)
