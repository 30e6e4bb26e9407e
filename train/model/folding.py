"""Folds batch norms into the convolutions before them, and back."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from train.model.blocks import ConvBlock
from train.model.detector import DetectorModel


def fold_batch_norm(model: DetectorModel) -> DetectorModel:
    """Copies a model with its batch norms folded into the convolutions; it computes the same in evaluation mode."""
    folded = copy.deepcopy(model).eval()
    for block in folded.modules():
        if isinstance(block, ConvBlock):
            block.conv = _fold(block.conv, block.norm)
            block.norm = nn.Identity()  # type: ignore[assignment]
    return folded


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Folds a norm into its convolution, in place: `norm(conv(x))` in float64, rounded once."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    conv.bias = nn.Parameter((norm.bias.double() - norm.running_mean.double() * scale).float())
    conv.weight = nn.Parameter((conv.weight.double() * scale.reshape(-1, 1, 1, 1)).float())
    return conv


def unfolded_weights(folded: DetectorModel, model: DetectorModel) -> dict[str, Tensor]:
    """Returns the weights of a folded model as those of one with batch norms; folding them gives the same bits again.

    Args:
        folded: from `fold_batch_norm`, perhaps trained since.
        model: with norms, of the same architecture.
    """
    weights = {name: value.detach() for name, value in folded.state_dict().items()}
    for name, block in model.named_modules():
        if isinstance(block, ConvBlock):
            bias = weights.pop(f"{name}.conv.bias")
            norm = {
                "weight": torch.ones_like(bias),
                "bias": bias,
                "running_mean": torch.zeros_like(bias),
                # The scale is then within a quarter of a float32 step of 1.
                "running_var": torch.full_like(bias, 1 - block.norm.eps),
                "num_batches_tracked": block.norm.state_dict()["num_batches_tracked"],
            }
            weights.update({f"{name}.norm.{key}": value for key, value in norm.items()})
    return weights
