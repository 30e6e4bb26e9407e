"""The calls of the CUDA driver that `cuda` needs, through cuda-bindings or pycuda.

Both give plain numbers as handles here: nothing is freed because a Python object went away, on whichever thread that was.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.backends.gpu import DRIVER_LIBRARY, driver_version
from runtime.components import import_library, reason
from runtime.errors import MissingComponentError

_NON_BLOCKING = 1  # CUstream_flags: a capture on it leaves the legacy stream, which other libraries use, alone
_CAPTURE_THREAD_LOCAL = 1  # CUstreamCaptureMode: calls of other threads do not disturb it
_CAPTURE_ERRORS = range(900, 911)  # of CUresult: they say that some stream captures, not that the context is lost


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
        """Allocates bytes of pinned host memory."""

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        """Frees what `pin` returned; nobody may use it, or a view of it, any more."""

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


class CudaBindings:
    """`Binding` through cuda-bindings, NVIDIA's own package.

    Args:
        library: the module `cuda.bindings.driver`.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._context: Any = None

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            status, *values = getattr(self._library, name)(*arguments)
        except (AttributeError, RuntimeError) as error:  # the package, or the driver, is too old for it
            raise CudaError(f"{name}: {reason(error)}") from error
        if int(status):
            raise CudaError(f"{name}: {status.name} ({int(status)})")
        return values[0] if values else None

    def open(self) -> None:
        self._call("cuInit", 0)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", 0))

    def push(self) -> None:
        self._call("cuCtxPushCurrent", self._context)

    def pop(self) -> None:
        self._call("cuCtxPopCurrent")

    def is_lost(self) -> bool:
        (status,) = self._library.cuCtxSynchronize()
        return int(status) not in (0, *_CAPTURE_ERRORS)

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def pin(self, size: int) -> NDArray[np.uint8]:
        address = int(self._call("cuMemHostAlloc", size, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        self._call("cuMemFreeHost", memory.ctypes.data)

    def create_stream(self) -> int:
        return int(self._call("cuStreamCreate", _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def upload(self, address: int, host: NDArray[Any], stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", address, host.ctypes.data, host.nbytes, stream)

    def download(self, host: NDArray[Any], address: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, stream)

    def begin_capture(self, stream: int) -> None:
        self._call("cuStreamBeginCapture", stream, self._library.CUstreamCaptureMode(_CAPTURE_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        return int(self._call("cuStreamEndCapture", stream))

    def instantiate(self, graph: int) -> int:
        return int(self._call("cuGraphInstantiate", graph, 0))

    def launch(self, executable: int, stream: int) -> None:
        self._call("cuGraphLaunch", executable, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphDestroy", graph)

    def destroy_executable(self, executable: int) -> None:
        self._call("cuGraphExecDestroy", executable)


class Pycuda:
    """`Binding` through pycuda, which has no CUDA graphs: those calls go to the driver itself.

    Args:
        library: the module `pycuda.driver`.
        driver: the driver library.
    """

    def __init__(self, library: Any, driver: Any) -> None:
        self._library, self._driver = library, driver
        self._context: Any = None
        self._owned: dict[int, Any] = {}  # pycuda frees what its last reference lets go of, on whichever thread that is

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except self._library.Error as error:
            raise CudaError(reason(error)) from error

    def _own(self, handle: int, item: Any) -> int:
        self._owned[handle] = item
        return handle

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._driver, name, None)
        if function is None:
            raise CudaError(f"the driver is too old for {name}")
        status = function(*arguments)
        if status:
            raise CudaError(f"{name}: CUDA error {status}")

    def open(self) -> None:
        with self._reporting():
            self._library.init()
            self._context = self._library.Device(0).retain_primary_context()
        # Never let go of: at exit pycuda would detach from the context, which is not how a primary one is given back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._context))

    def push(self) -> None:
        with self._reporting():
            self._context.push()

    def pop(self) -> None:
        with self._reporting():
            self._library.Context.pop()

    def is_lost(self) -> bool:
        return self._driver.cuCtxSynchronize() not in (0, *_CAPTURE_ERRORS)

    def allocate(self, size: int) -> int:
        with self._reporting():
            memory = self._library.mem_alloc(size)
            return self._own(int(memory), memory)

    def free(self, address: int) -> None:
        with self._reporting():
            self._owned.pop(address).free()

    def pin(self, size: int) -> NDArray[np.uint8]:
        with self._reporting():
            memory: NDArray[np.uint8] = self._library.pagelocked_empty(size, np.uint8)
        self._own(memory.ctypes.data, memory)
        return memory

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        with self._reporting():
            self._owned.pop(memory.ctypes.data).base.free()

    def create_stream(self) -> int:
        with self._reporting():
            stream = self._library.Stream(_NON_BLOCKING)
            return self._own(int(stream.handle), stream)

    def destroy_stream(self, stream: int) -> None:
        del self._owned[stream]  # the last reference

    def synchronize(self, stream: int) -> None:
        with self._reporting():
            self._owned[stream].synchronize()

    def upload(self, address: int, host: NDArray[Any], stream: int) -> None:
        with self._reporting():
            self._library.memcpy_htod_async(address, host, self._owned[stream])

    def download(self, host: NDArray[Any], address: int, stream: int) -> None:
        with self._reporting():
            self._library.memcpy_dtoh_async(host, address, self._owned[stream])

    def begin_capture(self, stream: int) -> None:
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_CAPTURE_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        graph = ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        return graph.value or 0

    def instantiate(self, graph: int) -> int:
        executable = ctypes.c_void_p()
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), ctypes.c_void_p(graph), ctypes.c_ulonglong(0))
        return executable.value or 0

    def launch(self, executable: int, stream: int) -> None:
        self._call("cuGraphLaunch", ctypes.c_void_p(executable), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphDestroy", ctypes.c_void_p(graph))

    def destroy_executable(self, executable: int) -> None:
        self._call("cuGraphExecDestroy", ctypes.c_void_p(executable))


def load_binding() -> Binding:
    """Imports cuda-bindings or, where that is not installed or does not load, pycuda.

    Raises:
        MissingComponentError: no driver, or neither package; with the remedy.
    """
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        raise MissingComponentError(
            f"no NVIDIA driver here ({DRIVER_LIBRARY} cannot be loaded); install it, and check with `nvidia-smi`"
        ) from error
    problems = []
    for name, make in (("cuda.bindings.driver", CudaBindings), ("pycuda.driver", lambda library: Pycuda(library, driver))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pycuda's guess at why it does not load; the error says it too
                return make(import_library(name))
        except Exception as error:  # a broken installation fails in as many ways as there are packages
            problems.append(_problem(error))
    bindings, pycuda = problems
    raise MissingComponentError(
        f"neither cuda-bindings ({bindings}) nor pycuda ({pycuda}) can be imported; run `pip install cuda-bindings`, or"
        " `CUDA_ENABLE_CURAND=False pip install pycuda`"
    )


def _problem(error: Exception) -> str:
    """Says why a package cannot be imported; a missing symbol of the driver means that the package is newer than it."""
    text = reason(error)
    if "undefined symbol: cu" in text:
        return f"{text}: built for a newer CUDA than the driver's {driver_version()}; update the driver, or build it here"
    return text
