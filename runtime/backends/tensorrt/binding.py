"""The calls of the CUDA driver that `cuda` needs, whichever package makes them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

NON_BLOCKING = 1  # CUstream_flags: a capture on it leaves the legacy stream, which other libraries use, alone
MAPPED = 2  # CU_MEMHOSTALLOC_DEVICEMAP
CAPTURE_THREAD_LOCAL = 1  # CUstreamCaptureMode: calls of other threads do not disturb it
CAPTURE_ERRORS = range(900, 911)  # of CUresult: they say that some stream captures, not that the context is lost


class CudaError(Exception):
    """A call that the driver refused."""


class Binding(Protocol):
    """Calls of the CUDA driver; all but `open` and `push` need the context current on the calling thread.

    Each raises CudaError where the driver refuses.
    """

    def open(self) -> None:
        """Retains the primary context of the first GPU, for the rest of the process."""

    def push(self) -> None:
        """Makes the context current for the calling thread."""

    def pop(self) -> None:
        """Takes that back."""

    def is_lost(self) -> bool:
        """Tells whether the context fails every call, as after an illegal memory access."""

    def allocate(self, size: int) -> int:
        """Allocates bytes on the GPU; returns their address."""

    def free(self, address: int) -> None:
        """Frees what `allocate` returned."""

    def pin(self, size: int) -> NDArray[np.uint8]:
        """Allocates bytes of pinned host memory, which the GPU may reach too."""

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        """Frees what `pin` returned; nobody may use it, or a view of it, any more."""

    def device_address(self, memory: NDArray[np.uint8]) -> int:
        """Returns the address at which the GPU sees what `pin` returned."""

    def create_stream(self) -> int:
        """Creates a non-blocking stream."""

    def destroy_stream(self, stream: int) -> None:
        """Destroys what `create_stream` returned."""

    def synchronize(self, stream: int) -> None:
        """Waits for the work of a stream."""

    def upload(self, address: int, host: NDArray[Any], stream: int) -> None:
        """Enqueues a copy of a contiguous array to the GPU."""

    def download(self, host: NDArray[Any], address: int, stream: int) -> None:
        """Enqueues a copy from the GPU to a contiguous array."""

    def begin_capture(self, stream: int) -> None:
        """Captures what is enqueued from now on."""

    def end_capture(self, stream: int) -> int:
        """Ends the capture; returns its graph."""

    def instantiate(self, graph: int) -> int:
        """Makes a graph executable."""

    def launch(self, executable: int, stream: int) -> None:
        """Enqueues an executable graph."""

    def destroy_graph(self, graph: int) -> None:
        """Destroys what `end_capture` returned."""

    def destroy_executable(self, executable: int) -> None:
        """Destroys what `instantiate` returned."""

    def create_event(self) -> int:
        """Creates an event that notes the time."""

    def record(self, event: int, stream: int) -> None:
        """Enqueues that the event notes the time."""

    def elapsed(self, start: int, end: int) -> float:
        """Returns the milliseconds between two events, once what was enqueued before them is done."""

    def destroy_event(self, event: int) -> None:
        """Destroys what `create_event` returned."""
