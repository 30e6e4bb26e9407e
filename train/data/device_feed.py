"""Brings batches to the device one ahead of their use: pinned, in a stream of its own, normalized there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from train.data.normalizer import Normalizer
from train.data.training_set import Batch
from train.losses.packing import PackedTargets


class DeviceBatch(NamedTuple):
    """A batch as a step takes it.

    Attributes:
        images: float32 `[N, 3, H, W]` on the device, normalized.
        targets: on the device.
        batch: as it was prepared.
    """

    images: Tensor
    targets: Tensor | PackedTargets
    batch: Batch


def to_device(batches: Iterable[Batch], normalizer: Normalizer, device: torch.device) -> Iterator[DeviceBatch]:
    """Yields the batches on the device; on a GPU the next one is copied while the current one is used."""
    if device.type != "cuda":
        for batch in batches:
            yield _copy(batch, normalizer, device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[DeviceBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            ahead = _copy(batch, normalizer, device), stream.record_event()
        if waiting:
            yield _ready(*waiting)
        waiting = ahead
    if waiting:
        yield _ready(*waiting)


def _copy(batch: Batch, normalizer: Normalizer, device: torch.device) -> DeviceBatch:
    images = normalizer(batch.images.to(device, non_blocking=True))
    # Without a matcher the labels themselves, which the loss matches.
    targets = batch.labels if batch.targets is None else batch.targets.to(device)
    return DeviceBatch(images, targets, batch)


def _ready(found: DeviceBatch, copied: torch.cuda.Event) -> DeviceBatch:
    """Makes the current stream wait for the copy, and keeps its memory until that stream is done with it."""
    current = torch.cuda.current_stream(found.images.device)
    current.wait_event(copied)
    tensors = [found.images, *(item for item in found.targets if isinstance(item, Tensor))]
    for tensor in tensors if isinstance(found.targets, PackedTargets) else tensors[:1]:
        tensor.record_stream(current)
    return found
