"""What a head hands to the loss and to the exported contract."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """Half precision as float32, which sampling positions and box logits need; what is that wide already as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class HeadOutput(NamedTuple):
    """One level's prediction before guiding is folded in.

    Attributes:
        raw: `[N, A * (5 + C), H, W]` logits, channels anchor-major (tx, ty, tw, th, to, classes).
        guide: `[N, A * 2, H, W]`, anchor-major (log w, log h) added to the base anchors' log sides; None without guiding.
    """

    raw: Tensor
    guide: Tensor | None

    def fold(self, num_classes: int) -> Tensor:
        """The exported contract: exp(g + t) = exp(g) exp(t), so adding `guide` to (tw, th) gives a head with fixed anchors."""
        if self.guide is None:
            return self.raw
        anchors = self.guide.shape[1] // 2
        height, width = (int(side) for side in self.raw.shape[2:])
        raw = upcast(self.raw).reshape(-1, anchors, 5 + num_classes, height, width)
        guide = upcast(self.guide).reshape(-1, anchors, 2, height, width)
        folded = torch.cat([raw[:, :, :2], raw[:, :, 2:4] + guide, raw[:, :, 4:]], dim=2)
        return folded.reshape(-1, anchors * (5 + num_classes), height, width)
