"""Packs targets, which are many small tensors, into two, so that they reach the device in two copies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class PackedTargets(NamedTuple):
    """Targets of a batch that follow from its labels alone; made by a `Matcher`, read by its loss.

    Attributes:
        ints: int64 `[I]`, all whole numbers.
        floats: float32 `[F]`, all others.
        shapes: of the tensors inside, (True for whole numbers, sides...), in order.
        numbers: plain numbers, in order.
    """

    ints: Tensor
    floats: Tensor
    shapes: tuple[tuple[int, ...], ...]
    numbers: tuple[int, ...]

    def to(self, device: torch.device) -> PackedTargets:
        """Copies the tensors to a device, without waiting where they are pinned."""
        return self._replace(ints=self.ints.to(device, non_blocking=True), floats=self.floats.to(device, non_blocking=True))


class Matcher(Protocol):
    """Makes a loss's targets from labels, in the workers; small, and fit to be sent to another process."""

    def __call__(self, labels: Tensor, size: tuple[int, int]) -> PackedTargets:
        """Makes the targets of a batch, on the CPU.

        Args:
            labels: on the CPU, `[N, M, 5 or 6]` (class, cx, cy, w, h in input pixels[, mixing weight]); all-zero rows are
                padding.
            size: (height, width) of the input in pixels.
        """


def pack(parts: list[Any]) -> PackedTargets:
    """Packs dataclasses, tensors (int64 or float32) and whole numbers, in order."""
    flat = [item for part in parts for item in _items(part)]
    tensors = [item for item in flat if isinstance(item, Tensor)]
    whole = [not item.is_floating_point() for item in tensors]
    ints = [item.flatten() for item, is_whole in zip(tensors, whole) if is_whole]
    floats = [item.flatten() for item, is_whole in zip(tensors, whole) if not is_whole]
    return PackedTargets(
        torch.cat([torch.zeros(0, dtype=torch.int64), *ints]),
        torch.cat([torch.zeros(0), *floats]),
        tuple((int(is_whole), *item.shape) for item, is_whole in zip(tensors, whole)),
        tuple(item for item in flat if not isinstance(item, Tensor)),
    )


class Unpacker:
    """Takes the parts of `PackedTargets` out again, in order, as views."""

    def __init__(self, packed: PackedTargets) -> None:
        self._shapes, self._numbers = iter(packed.shapes), iter(packed.numbers)
        self._buffers, self._at = (packed.floats, packed.ints), [0, 0]

    def tensor(self) -> Tensor:
        whole, *sides = next(self._shapes)
        start = self._at[whole]
        self._at[whole] += math.prod(sides)
        return self._buffers[whole][start : self._at[whole]].view(sides)

    def take(self, kind: type[_T]) -> _T:
        """Takes a dataclass whose fields are tensors and whole numbers."""
        fields: Mapping[str, Any] = {
            field.name: next(self._numbers) if field.type == "int" else self.tensor()
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        }
        return kind(**fields)


def _items(part: Any) -> list[Any]:
    if dataclasses.is_dataclass(part):
        return [getattr(part, field.name) for field in dataclasses.fields(part)]
    return [part]
