"""Batch norm over the images of all ranks, for devices on which PyTorch has none."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics in training come from all ranks; computes what PyTorch's does, which needs GPUs.

    Made of differentiable sums over the ranks, so that gradients flow through everyone's statistics.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same; N may differ between ranks."""
        if not self.training:
            return super().forward(input)
        channels = self.num_features
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        sums = torch.cat([x.sum(dim=(0, 2, 3)), x.new_full((1,), x.numel() / channels)])
        totals = _sum_over_ranks(sums)
        count, mean = totals[-1].detach(), totals[:-1] / totals[-1]
        centered = x - mean.view(1, -1, 1, 1)
        # Around the common mean, in a second sum: the difference of two large squares would lose the digits.
        variance = _sum_over_ranks(centered.square().sum(dim=(0, 2, 3))) / count
        self._update(mean.detach(), variance.detach() * count / (count - 1))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        result: Tensor = centered * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return result.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics, which evaluation uses, towards those of this batch."""
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


class _SumOverRanks(torch.autograd.Function):
    """Sums a tensor over the ranks, and its gradient too: every rank's loss depends on every rank's share."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Returns the sum, the same on all ranks."""
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Returns the gradient of all ranks' losses."""
        return _sum_over_ranks(gradient)


def _sum_over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return total


def synchronized(model: nn.Module, device: torch.device) -> None:
    """Replaces every batch norm in a model by one over all ranks: PyTorch's on a GPU, this module's elsewhere.

    Names, weights and running statistics stay, so that checkpoints are the same with and without.
    """
    assert dist.is_initialized()
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            if device.type == "cuda":
                replaced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
            else:
                kind: dict[str, Any] = {"device": norm.weight.device, "dtype": norm.weight.dtype}
                replaced = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, **kind)
                replaced.load_state_dict(norm.state_dict())
                for new, old in zip(replaced.parameters(), norm.parameters()):
                    new.requires_grad_(old.requires_grad)
            setattr(parent, name, replaced.train(norm.training))
