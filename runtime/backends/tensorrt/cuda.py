"""CUDA device, streams, buffers and graphs for TensorRT; a `Binding` makes the calls."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.backends.gpu import Gpu, find_gpu
from runtime.backends.tensorrt.binding import Binding, CudaError
from runtime.backends.tensorrt.bindings import load_binding
from runtime.errors import DetectorError, MissingComponentError, ModelError

log = logging.getLogger(__name__)

_FAILED = "the engine failed on the GPU"


class Device:
    """The first GPU with its primary context, which all CUDA code of a process shares. Open it with `open_device`.

    Attributes:
        gpu: its name and compute capability.
    """

    def __init__(self, binding: Binding, gpu: Gpu) -> None:
        self._binding, self.gpu = binding, gpu

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes the GPU current for the calling thread; everything below and all of TensorRT needs that."""
        with _reporting(self._binding, "the GPU does not answer", ModelError):
            self._binding.push()
        try:
            yield
        finally:
            with contextlib.suppress(CudaError):  # of a context that is lost
                self._binding.pop()

    def create_stream(self) -> Stream:
        """Creates a stream other than the default one.

        Raises:
            MissingComponentError: the GPU does not give one.
        """
        with _reporting(self._binding, "the GPU gives no stream", MissingComponentError):
            return Stream(self._binding)

    def allocate(self, shape: Sequence[int], dtype: str, *, on_host: bool = True) -> Buffer:
        """Allocates a buffer.

        Args:
            shape: of the buffer.
            dtype: as numpy calls it.
            on_host: whether it has a counterpart on the host, which copies need.

        Raises:
            MissingComponentError: there is no memory for it.
        """
        try:
            return Buffer(self._binding, shape, dtype, on_host, is_shared=self.gpu.is_integrated and on_host)
        except CudaError as error:
            megabytes = math.prod(shape) * np.dtype(dtype).itemsize / 1e6
            raise MissingComponentError(
                f"{self.gpu.name} has no {megabytes:.0f} MB left ({error}); end what else runs on it, or build the"
                " engine with a smaller --batch"
            ) from error


class Buffer:
    """Memory on the GPU and its counterpart on the host, pinned so that copies are asynchronous.

    Attributes:
        shape: of the content.
        is_shared: whether both are the same memory, so that there is nothing to copy.
        host: array of that shape; empty without a counterpart on the host, and after `close`.
        address: of the memory on the GPU, 256-byte aligned.
    """

    def __init__(self, binding: Binding, shape: Sequence[int], dtype: str, on_host: bool, is_shared: bool) -> None:
        self._binding, self.shape, self.is_shared = binding, tuple(shape), is_shared
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self.host: NDArray[Any] = np.empty(0, dtype)
        self._pinned = binding.pin(size) if on_host else None
        try:
            if self._pinned is not None and is_shared:
                self.address = binding.device_address(self._pinned)
            else:
                self.address = binding.allocate(size)
        except BaseException:
            self._unpin()
            raise
        if self._pinned is not None:
            self.host = self._pinned.view(dtype).reshape(self.shape)

    def close(self) -> None:
        """Frees both."""
        if not self.is_shared:
            with contextlib.suppress(CudaError):  # of a context that is lost: its memory is too
                self._binding.free(self.address)
        self._unpin()

    def _unpin(self) -> None:
        self.host = np.empty(0, self.host.dtype)  # so that nobody reads freed memory
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            with contextlib.suppress(CudaError):
                self._binding.unpin(pinned)


class Stream:
    """A CUDA stream, which one thread at a time may use.

    Attributes:
        handle: of the stream, for TensorRT.
    """

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self.handle = binding.create_stream()

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Enqueues a copy of the first `rows` of a buffer to the GPU."""
        if not buffer.is_shared:
            self._binding.upload(buffer.address, buffer.host[:rows], self.handle)

    def download(self, buffer: Buffer, rows: int) -> None:
        """Enqueues a copy of the first `rows` of a buffer from the GPU."""
        if not buffer.is_shared:
            self._binding.download(buffer.host[:rows], buffer.address, self.handle)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Waits at the end for the work enqueued within.

        Raises:
            ModelError: the GPU reports an error, of this work or of earlier work.
        """
        with _reporting(self._binding, _FAILED, ModelError):
            yield
            self._binding.synchronize(self.handle)

    @contextlib.contextmanager
    def timed(self) -> Iterator[list[float]]:
        """Does what `running` does, and measures the work on the GPU; yields a list that holds its milliseconds afterwards."""
        found: list[float] = []
        with contextlib.ExitStack() as events:

            def create() -> int:
                event = self._binding.create_event()
                events.callback(self._destroy, event)
                return event

            with self.running():
                start, end = create(), create()
                self._binding.record(start, self.handle)
                yield found
                self._binding.record(end, self.handle)
            with _reporting(self._binding, _FAILED, ModelError):
                found.append(self._binding.elapsed(start, end))

    def _destroy(self, event: int) -> None:
        with contextlib.suppress(CudaError):
            self._binding.destroy_event(event)

    def capture(self, enqueue: Callable[[], None]) -> Optional[Graph]:
        """Captures what `enqueue` enqueues to this stream as a graph, without running it; None if that fails."""
        try:
            return Graph(self._binding, self._capture(enqueue))
        except (CudaError, ModelError) as error:
            log.debug("no CUDA graph, work is enqueued call by call: %s", error)
            return None

    def _capture(self, enqueue: Callable[[], None]) -> int:
        self._binding.begin_capture(self.handle)
        try:
            enqueue()
        except BaseException:  # the stream has to leave capture either way
            with contextlib.suppress(CudaError):
                graph = self._binding.end_capture(self.handle)
                if graph:
                    self._binding.destroy_graph(graph)
            raise
        return self._binding.end_capture(self.handle)

    def launch(self, graph: Graph) -> None:
        """Enqueues a graph; what the driver refuses is raised by `running`."""
        self._binding.launch(graph.handle, self.handle)

    def close(self) -> None:
        """Destroys the stream."""
        with contextlib.suppress(CudaError):
            self._binding.destroy_stream(self.handle)


class Graph:
    """A CUDA graph: captured work that is enqueued with one call, at the addresses it was captured with."""

    def __init__(self, binding: Binding, captured: int) -> None:
        self._binding = binding
        try:
            self.handle = binding.instantiate(captured)
        finally:
            with contextlib.suppress(CudaError):
                binding.destroy_graph(captured)

    def close(self) -> None:
        """Destroys the graph."""
        with contextlib.suppress(CudaError):
            self._binding.destroy_executable(self.handle)


@contextlib.contextmanager
def _reporting(binding: Binding, what: str, kind: type[DetectorError]) -> Iterator[None]:
    """Turns errors of the GPU into `kind`; says so where no later call in this process can succeed."""
    lost = "the GPU's context is lost, and with it every later call: restart the process"
    try:
        yield
    except CudaError as error:
        remedy = lost if binding.is_lost() else "`nvidia-smi` shows its state"
        raise kind(f"{what} ({error}); {remedy}") from error
    except ModelError as error:  # of TensorRT, which reports an error of the GPU in its own words
        if binding.is_lost():
            raise kind(f"{error}; {lost}") from error
        raise


@functools.cache
def open_device() -> Device:
    """Opens the first GPU of this machine.

    Raises:
        MissingComponentError: no driver, neither cuda-bindings nor pycuda, or no GPU; with the remedy.
    """
    binding = load_binding()
    gpu = find_gpu()
    if gpu is None:
        raise MissingComponentError("the NVIDIA driver shows no GPU; check `nvidia-smi`, CUDA_VISIBLE_DEVICES and --device")
    try:
        binding.open()
    except CudaError as error:
        raise MissingComponentError(f"the GPU does not answer ({error}); `nvidia-smi` shows its state") from error
    return Device(binding, gpu)
