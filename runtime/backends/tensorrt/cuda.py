"""CUDA contexts, streams, buffers and graphs, through pycuda.

pycuda has no CUDA graphs, so those calls go to the driver itself. No other module uses pycuda.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.backends.gpu import DRIVER_LIBRARY, Gpu, find_gpu
from runtime.components import import_library
from runtime.errors import DetectorError, MissingComponentError, ModelError

log = logging.getLogger(__name__)

_FAILED = "the engine failed on the GPU"
_NON_BLOCKING = 1  # CUstream_flags: a capture on it leaves the legacy stream, which other libraries use, alone
_CAPTURE_THREAD_LOCAL = 1  # CUstreamCaptureMode in cuda.h: calls of other threads do not disturb it


class Device:
    """The first GPU with its primary context, which all CUDA code of a process shares. Open it with `open_device`.

    Attributes:
        gpu: its name and compute capability.
    """

    def __init__(self, cuda: Any, driver: Any, gpu: Gpu) -> None:
        self._cuda, self._driver, self.gpu = cuda, driver, gpu
        # Never released: pycuda cannot do so without leaving an entry on the thread's stack of contexts.
        with _reporting(cuda, "the GPU does not answer", MissingComponentError):
            self._context = cuda.Device(0).retain_primary_context()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes the GPU current for the calling thread; everything below and all of TensorRT needs that."""
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def create_stream(self) -> Stream:
        """Creates a stream other than the default one.

        Raises:
            MissingComponentError: the GPU does not give one.
        """
        with _reporting(self._cuda, "the GPU gives no stream", MissingComponentError):
            return Stream(self._cuda, self._driver)

    def allocate(self, shape: Sequence[int], dtype: str) -> Buffer:
        """Allocates a buffer.

        Args:
            shape: of the buffer.
            dtype: as numpy calls it.

        Raises:
            MissingComponentError: there is no memory for it.
        """
        try:
            return Buffer(self._cuda, shape, dtype)
        except self._cuda.Error as error:
            megabytes = math.prod(shape) * np.dtype(dtype).itemsize / 1e6
            raise MissingComponentError(
                f"{self.gpu.name} has no {megabytes:.0f} MB left ({_reason(error)}); end what else runs on it, or build the"
                " engine with a smaller --batch"
            ) from error


class Buffer:
    """Memory on the GPU and its counterpart on the host, pinned so that copies are asynchronous.

    Attributes:
        host: array of the given shape and dtype; empty after `close`.
        address: of the memory on the GPU, 256-byte aligned.
    """

    def __init__(self, cuda: Any, shape: Sequence[int], dtype: str) -> None:
        self.host: NDArray[Any] = cuda.pagelocked_empty(tuple(shape), np.dtype(dtype))
        try:
            self._memory = cuda.mem_alloc(self.host.nbytes)
        except BaseException:
            self._free_host()
            raise
        self.address = int(self._memory)

    def close(self) -> None:
        """Frees both."""
        self._memory.free()
        self._free_host()

    def _free_host(self) -> None:
        pinned: Any = self.host.base
        self.host = np.empty(0, self.host.dtype)  # so that nobody reads freed memory
        pinned.free()


class Stream:
    """A CUDA stream, which one thread at a time may use.

    Attributes:
        handle: of the stream, for TensorRT.
    """

    def __init__(self, cuda: Any, driver: Any) -> None:
        self._cuda, self._driver = cuda, driver
        self._stream = cuda.Stream(_NON_BLOCKING)
        self.handle = int(self._stream.handle)

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Enqueues a copy of the first `rows` of a buffer to the GPU."""
        self._cuda.memcpy_htod_async(buffer.address, buffer.host[:rows], self._stream)

    def download(self, buffer: Buffer, rows: int) -> None:
        """Enqueues a copy of the first `rows` of a buffer from the GPU."""
        self._cuda.memcpy_dtoh_async(buffer.host[:rows], buffer.address, self._stream)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Waits at the end for the work enqueued within.

        Raises:
            ModelError: the GPU reports an error, of this work or of earlier work.
        """
        with _reporting(self._cuda, _FAILED, ModelError):
            yield
            self._stream.synchronize()

    def capture(self, enqueue: Callable[[], None]) -> Optional[Graph]:
        """Captures what `enqueue` enqueues to this stream as a graph, without running it; None if that fails."""
        try:
            return Graph(self._driver, self._capture(enqueue))
        except (_GraphError, ModelError, self._cuda.Error) as error:
            log.debug("no CUDA graph, work is enqueued call by call: %s", error)
            return None

    def _capture(self, enqueue: Callable[[], None]) -> ctypes.c_void_p:
        stream, graph = ctypes.c_void_p(self.handle), ctypes.c_void_p()
        _call(self._driver, "cuStreamBeginCapture_v2", stream, ctypes.c_int(_CAPTURE_THREAD_LOCAL))
        try:
            enqueue()
        except BaseException:  # the stream has to leave capture either way
            self._driver.cuStreamEndCapture(stream, ctypes.byref(graph))
            if graph:
                self._driver.cuGraphDestroy(graph)
            raise
        _call(self._driver, "cuStreamEndCapture", stream, ctypes.byref(graph))
        return graph

    def launch(self, graph: Graph) -> None:
        """Enqueues a graph.

        Raises:
            ModelError: the driver refuses.
        """
        try:
            _call(self._driver, "cuGraphLaunch", graph.handle, ctypes.c_void_p(self.handle))
        except _GraphError as error:
            raise ModelError(f"{_FAILED} ({error})") from error

    def close(self) -> None:
        """Destroys the stream, by dropping the last reference to it."""
        self._stream = None


class Graph:
    """A CUDA graph: captured work that is enqueued with one call, at the addresses it was captured with."""

    def __init__(self, driver: Any, captured: ctypes.c_void_p) -> None:
        self._driver, self.handle = driver, ctypes.c_void_p()
        try:
            _call(driver, "cuGraphInstantiateWithFlags", ctypes.byref(self.handle), captured, ctypes.c_ulonglong(0))
        finally:
            driver.cuGraphDestroy(captured)

    def close(self) -> None:
        """Destroys the graph."""
        self._driver.cuGraphExecDestroy(self.handle)


class _GraphError(Exception):
    """A call that the driver refused."""


def _call(driver: Any, name: str, *arguments: Any) -> None:
    function = getattr(driver, name, None)
    if function is None:
        raise _GraphError(f"the driver is too old for {name}")
    status = function(*arguments)
    if status:
        raise _GraphError(f"{name}: CUDA error {status}")


@contextlib.contextmanager
def _reporting(cuda: Any, what: str, kind: type[DetectorError]) -> Iterator[None]:
    try:
        yield
    except cuda.Error as error:
        raise kind(f"{what} ({_reason(error)}); `nvidia-smi` shows its state") from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@functools.cache
def open_device() -> Device:
    """Opens the first GPU of this machine.

    Raises:
        MissingComponentError: no driver, no pycuda or no GPU; with the remedy.
    """
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        raise MissingComponentError(
            f"no NVIDIA driver here ({DRIVER_LIBRARY} cannot be loaded); install it, and check with `nvidia-smi`"
        ) from error
    try:
        cuda = import_library("pycuda.driver")
    except (ImportError, OSError) as error:
        raise MissingComponentError(
            f"pycuda cannot be imported ({_reason(error)}); run `CUDA_ENABLE_CURAND=False pip install pycuda`"
        ) from error
    gpu = find_gpu()
    if gpu is None:
        raise MissingComponentError("the NVIDIA driver shows no GPU; check `nvidia-smi` and CUDA_VISIBLE_DEVICES")
    with _reporting(cuda, "the GPU does not answer", MissingComponentError):
        cuda.init()
    return Device(cuda, driver, gpu)
