"""`Binding` through pycuda."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.tensorrt.binding import CAPTURE_ERRORS, CAPTURE_THREAD_LOCAL, MAPPED, NON_BLOCKING, CudaError
from runtime.components import reason


class Pycuda:
    """`Binding` through pycuda, which has no CUDA graphs: those calls, and those on events, go to the driver itself.

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
        return self._driver.cuCtxSynchronize() not in (0, *CAPTURE_ERRORS)

    def allocate(self, size: int) -> int:
        with self._reporting():
            memory = self._library.mem_alloc(size)
            return self._own(int(memory), memory)

    def free(self, address: int) -> None:
        with self._reporting():
            self._owned.pop(address).free()

    def pin(self, size: int) -> NDArray[np.uint8]:
        with self._reporting():
            memory: NDArray[np.uint8] = self._library.pagelocked_empty(size, np.uint8, mem_flags=MAPPED)
        self._own(memory.ctypes.data, memory)
        return memory

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        with self._reporting():
            self._owned.pop(memory.ctypes.data).base.free()

    def device_address(self, memory: NDArray[np.uint8]) -> int:
        address = ctypes.c_ulonglong()
        pointer = ctypes.c_void_p(memory.ctypes.data)
        self._call("cuMemHostGetDevicePointer_v2", ctypes.byref(address), pointer, ctypes.c_uint(0))
        return address.value

    def create_stream(self) -> int:
        with self._reporting():
            stream = self._library.Stream(NON_BLOCKING)
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
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(CAPTURE_THREAD_LOCAL))

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

    def create_event(self) -> int:
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
        return event.value or 0

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def elapsed(self, start: int, end: int) -> float:
        milliseconds = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), ctypes.c_void_p(start), ctypes.c_void_p(end))
        return milliseconds.value

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy_v2", ctypes.c_void_p(event))
