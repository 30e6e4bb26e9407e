"""Chooses what makes the calls of the CUDA driver, cuda-bindings or pycuda, and makes them through cuda-bindings.

Both give plain numbers as handles here: nothing is freed because a Python object went away, on whichever thread that was.
"""

from __future__ import annotations

import ctypes
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.gpu import DRIVER_LIBRARY, driver_version
from runtime.backends.tensorrt.binding import CAPTURE_ERRORS, CAPTURE_THREAD_LOCAL, MAPPED, NON_BLOCKING, Binding, CudaError
from runtime.backends.tensorrt.pycuda_binding import Pycuda
from runtime.components import import_library, reason
from runtime.errors import MissingComponentError


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
        return int(status) not in (0, *CAPTURE_ERRORS)

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def pin(self, size: int) -> NDArray[np.uint8]:
        address = int(self._call("cuMemHostAlloc", size, MAPPED))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        self._call("cuMemFreeHost", memory.ctypes.data)

    def device_address(self, memory: NDArray[np.uint8]) -> int:
        return int(self._call("cuMemHostGetDevicePointer", memory.ctypes.data, 0))

    def create_stream(self) -> int:
        return int(self._call("cuStreamCreate", NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def upload(self, address: int, host: NDArray[Any], stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", address, host.ctypes.data, host.nbytes, stream)

    def download(self, host: NDArray[Any], address: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, stream)

    def begin_capture(self, stream: int) -> None:
        self._call("cuStreamBeginCapture", stream, self._library.CUstreamCaptureMode(CAPTURE_THREAD_LOCAL))

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

    def create_event(self) -> int:
        return int(self._call("cuEventCreate", 0))

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def elapsed(self, start: int, end: int) -> float:
        return float(self._call("cuEventElapsedTime", start, end))

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy", event)


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
