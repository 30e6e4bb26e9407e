"""A made-up GPU: what cuda-bindings, pycuda and libcuda offer of one.

It proves order and ownership, never numbers: work runs when the stream is waited for and not before, every call needs the
context on its thread, freed memory cannot be used, and everything that was taken is on a list until it is given back.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Work = Callable[[], None]


_GARBAGE = 255  # four of them are a NaN in float32


class PycudaError(Exception):
    """pycuda's base class of errors."""


class Pinned:
    """Owner of an array in pinned memory."""

    def __init__(self, gpu: FakeGpu, shape: Sequence[int], dtype: Any) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.gpu, self.memory = gpu, np.full(size, _GARBAGE, np.uint8).view(dtype).reshape(shape)
        self.__array_interface__ = self.memory.__array_interface__
        self.address = self.memory.ctypes.data
        gpu.pinned[self.address] = self
        gpu.take(self)

    def free(self) -> None:
        self.gpu.give_back(self)
        del self.gpu.pinned[self.address]


class DeviceMemory:
    """Memory on the GPU."""

    def __init__(self, gpu: FakeGpu, size: int) -> None:
        self.gpu, self.bytes = gpu, np.full(size, _GARBAGE, np.uint8)
        gpu.addresses += 1 << 32
        self.address = gpu.addresses
        gpu.memory[self.address] = self
        gpu.take(self)

    def __int__(self) -> int:
        return self.address

    def array(self, shape: Sequence[int], dtype: Any) -> Any:
        """The first elements, to read and to write."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes[:size].view(dtype).reshape(shape)

    def free(self) -> None:
        self.gpu.give_back(self)
        del self.gpu.memory[self.address]


class FakeGpu:
    """The GPU.

    Attributes:
        log: what was asked of it, in order. live: what was taken and not given back.
        fail: call -> the number of that call, from 1, which fails. is_capturable: whether work can become a graph.
        is_lost: whether its context fails every call, which a failure makes it if `fails_for_good`.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.live: list[Any] = []
        self.fail: dict[str, int] = {}
        self.calls: Counter[str] = Counter()
        self.addresses = 0
        self.done = 0  # pieces of work
        self.times: dict[int, int] = {}  # event -> pieces of work done before
        self.memory: dict[int, DeviceMemory] = {}
        self.pinned: dict[int, Pinned] = {}
        self.streams: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.is_capturable = True
        self.is_lost = self.fails_for_good = False
        self._threads = threading.local()

    def check_context(self) -> None:
        assert getattr(self._threads, "depth", 0) > 0, "no context on this thread"

    def call(self, name: str) -> None:
        """Something is asked of it."""
        self.check_context()
        self.calls[name] += 1
        self.log.append(name)
        if self.is_lost or self.fail.get(name) == self.calls[name]:
            self.is_lost = self.fails_for_good
            raise PycudaError(f"{name} failed: made up")

    def take(self, item: Any) -> None:
        self.check_context()
        self.live.append(item)

    def give_back(self, item: Any) -> None:
        self.check_context()
        assert item in self.live, "freed twice"
        self.live.remove(item)

    def put(self, stream: int, work: Work) -> None:
        """Enqueue, or add to what is being captured."""
        assert stream in self.live, "stream was destroyed"
        self.capturing.get(stream, self.streams[stream]).append(work)

    def create_stream(self, flags: int) -> int:
        """A queue of work that runs when it is waited for."""
        assert flags == 1, "a blocking stream: a capture on it stops all other libraries"
        self.call("stream")
        self.addresses += 1
        self.streams[self.addresses] = []
        self.take(self.addresses)
        return self.addresses

    def synchronize(self, stream: int) -> None:
        self.call("synchronize")
        while self.streams[stream]:
            self.streams[stream].pop(0)()
            self.done += 1

    def destroy_stream(self, stream: int) -> None:
        self.give_back(stream)
        del self.streams[stream]

    # pycuda.driver and cuda.bindings.driver, see `cuda_packages`

    def pinned_bytes(self, address: int, size: int) -> Any:
        for start, pinned in self.pinned.items():
            if start <= address and address + size <= start + pinned.memory.nbytes:
                return np.asarray(pinned).reshape(-1).view(np.uint8)[address - start :][:size]
        raise AssertionError("not pinned memory, or freed")

    def push(self) -> None:
        self._threads.depth = getattr(self._threads, "depth", 0) + 1

    def pop(self) -> None:
        self.check_context()
        self._threads.depth -= 1

    def pagelocked_empty(self, shape: Sequence[int], dtype: Any, mem_flags: int = 0) -> Any:
        assert mem_flags == 2, "memory that the GPU may not reach"
        self.call("pinned")
        return np.asarray(Pinned(self, shape, dtype))

    def elapsed(self, start: int, end: int) -> float:
        """Three milliseconds for each piece of work; none but those that were waited for count."""
        return 3.0 * (self.times[end] - self.times[start])

    def mem_alloc(self, size: int) -> DeviceMemory:
        self.call("memory")
        return DeviceMemory(self, size)

    def upload(self, address: int, host: Any, stream: int) -> None:
        self.call("upload")
        target = self.memory[address].array(host.shape, host.dtype)

        def work() -> None:
            self._check_pinned(host)
            target[:] = host

        self.put(stream, work)

    def download(self, host: Any, address: int, stream: int) -> None:
        self.call("download")
        source = self.memory[address].array(host.shape, host.dtype)

        def work() -> None:
            self._check_pinned(host)
            host[:] = source

        self.put(stream, work)

    def _check_pinned(self, host: Any) -> None:
        while isinstance(host, np.ndarray):
            host = host.base
        assert host in self.live, "not pinned memory, or freed"

    # libcuda

    def _answer(self, name: str) -> int:
        try:
            self.call(name)
        except PycudaError:
            return 700
        return 0

    # The driver's own names, since that is how they are called.
    def cuCtxSynchronize(self) -> int:  # noqa: N802
        self.check_context()
        return 700 if self.is_lost else 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> int:  # noqa: N802
        assert mode.value == 1
        status = self._answer("begin capture")
        if not status:
            self.capturing[stream.value] = []
        return status

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        captured = self.capturing.pop(stream.value)
        if not self.is_capturable or self._answer("end capture"):
            return 900
        graph._obj.value = self._keep(captured)
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:  # noqa: N802
        if self._answer("instantiate"):
            return 2
        executable._obj.value = self._keep(self.graphs[graph.value])
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:  # noqa: N802
        status = self._answer("launch")
        for work in self.graphs[executable.value]:
            self.put(stream.value, work)
        return status

    def cuGraphDestroy(self, graph: Any) -> int:  # noqa: N802
        self.give_back(graph.value)
        del self.graphs[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy  # noqa: N815

    def cuEventCreate(self, event: Any, flags: Any) -> int:  # noqa: N802
        event._obj.value = self._keep([])
        return self._answer("event")

    def cuEventRecord(self, event: Any, stream: Any) -> int:  # noqa: N802
        def work() -> None:
            self.times[event.value] = self.done

        self.put(stream.value, work)
        return 0

    def cuEventElapsedTime(self, milliseconds: Any, start: Any, end: Any) -> int:  # noqa: N802
        milliseconds._obj.value = self.elapsed(start.value, end.value)
        return 0

    cuEventDestroy_v2 = cuGraphDestroy  # noqa: N815

    def _keep(self, work: list[Work]) -> int:
        self.addresses += 1
        self.graphs[self.addresses] = work
        self.take(self.addresses)
        return self.addresses
