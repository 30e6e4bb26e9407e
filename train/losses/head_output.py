"""Holds one level's prediction and folds the guiding into it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """Casts FP16 to float32, which sampling positions and box logits need; wider tensors pass unchanged."""
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
        """Folds `guide` into (tw, th): exp(g + t) = exp(g) exp(t), so the result is a head with fixed anchors."""
        if self.guide is None:
            return self.raw
        anchors = self.guide.shape[1] // 2
        height, width = (int(side) for side in self.raw.shape[2:])
        raw = upcast(self.raw).reshape(-1, anchors, 5 + num_classes, height, width)
        guide = upcast(self.guide).reshape(-1, anchors, 2, height, width)
        folded = torch.cat([raw[:, :, :2], raw[:, :, 2:4] + guide, raw[:, :, 4:]], dim=2)
        return folded.reshape(-1, anchors * (5 + num_classes), height, width)
