"""Memory in which forked workers hand over images: anonymous, so that the size of `/dev/shm` does not matter."""

from __future__ import annotations

import mmap
from collections import deque

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MissingComponentError


class SharedSlots:
    """Slots of equal size; one process hands them out, and forked ones write into them.

    Args:
        count: of slots.
        size: bytes of each; memory is taken when it is written to.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size
        try:
            self._memory = mmap.mmap(-1, count * size)
        except (OSError, ValueError) as error:
            raise MissingComponentError(
                f"{count * size >> 20} MB for {count} batches to come cannot be had ({error}); lower --workers or --batch"
            ) from error
        self._free: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        """Frees all slots."""
        self._free = deque(range(self._count))

    def take(self) -> int:
        """Takes a free slot."""
        return self._free.popleft()

    def release(self, slot: int) -> None:
        """Gives a slot back."""
        self._free.append(slot)

    def view(self, slot: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The beginning of a slot as an array, uint8 of any shape that fits."""
        count = int(np.prod(shape))
        if count > self._size:
            raise ValueError(f"{shape} does not fit into a slot of {self._size} bytes")
        return np.frombuffer(self._memory, np.uint8, count, slot * self._size).reshape(shape)
