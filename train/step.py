"""One step of training, from a batch on the device to new weights; nothing in it waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from train.config import TrainConfig
from train.data.device_feed import DeviceBatch
from train.ema import WeightAverage
from train.model import DetectorModel
from train.precision import Precision


def take_step(
    model: DetectorModel,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    average: WeightAverage | None,
    found: DeviceBatch,
    config: TrainConfig,
) -> list[Tensor]:
    """Updates the weights by one batch.

    Args:
        model: in training mode.
        optimizer: of the model.
        precision: of the run.
        average: of the weights, updated too; None for none.
        found: the batch.
        config: of the run.

    Returns:
        Scalars on the device: the model's `components`, `total`, and the gradient's norm before clipping.
    """
    with precision.autocast():
        losses = model.loss(found.images, found.targets)
    optimizer.zero_grad()
    precision.backward(losses["total"])
    norm = precision.clip(optimizer, model.parameters(), config.clip_gradient)
    precision.step(optimizer)
    if average:
        average.update()
    return [*(losses[name] for name in (*model.components, "total")), norm]
