"""The made-up GPU as cuda-bindings and pycuda offer it."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.support.cuda_fakes import FakeGpu, PycudaError


class Stream:
    """pycuda's stream, which is destroyed with the last reference to it, on whichever thread that is."""

    handle = 0

    def __init__(self, gpu: FakeGpu, flags: int) -> None:
        self.gpu = gpu
        self.handle = gpu.create_stream(flags)

    def synchronize(self) -> None:
        self.gpu.synchronize(self.handle)

    def __del__(self) -> None:
        if self.handle in self.gpu.live:
            self.gpu.destroy_stream(self.handle)


class Status(enum.IntEnum):
    """CUresult."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


def _with_result(call: Callable[..., int], *arguments: Any, is_first: bool) -> tuple[Status, int]:
    """A call of the driver that writes its result to an argument, as cuda-bindings returns it."""
    result = ctypes.c_void_p()
    given = (ctypes.byref(result), *arguments) if is_first else (*arguments, ctypes.byref(result))
    return Status(call(*given)), result.value or 0


def as_pycuda(gpu: FakeGpu) -> Any:
    """The module `pycuda.driver`."""
    module: Any = ModuleType("pycuda.driver")
    module.Error, module.init = PycudaError, lambda: None
    module.Device = lambda index: SimpleNamespace(retain_primary_context=lambda: SimpleNamespace(push=gpu.push))
    module.Context = SimpleNamespace(pop=gpu.pop)
    module.Stream = lambda flags=0: Stream(gpu, flags)
    module.pagelocked_empty = gpu.pagelocked_empty
    module.mem_alloc = gpu.mem_alloc
    module.memcpy_htod_async = lambda address, host, stream: gpu.upload(address, host, stream.handle)
    module.memcpy_dtoh_async = lambda host, address, stream: gpu.download(host, address, stream.handle)
    return module


def as_cuda_bindings(gpu: FakeGpu) -> Any:
    """The module `cuda.bindings.driver`."""

    def status(call: Callable[[], Any]) -> tuple[Any, ...]:
        try:
            return Status.CUDA_SUCCESS, call()
        except PycudaError:
            return Status.CUDA_ERROR_ILLEGAL_ADDRESS, None

    module: Any = ModuleType("cuda.bindings.driver")
    module.CUstreamCaptureMode = ctypes.c_int
    module.cuInit = lambda flags: (Status.CUDA_SUCCESS,)
    module.cuDeviceGet = lambda index: (Status.CUDA_SUCCESS, index)
    module.cuDevicePrimaryCtxRetain = lambda device: (Status.CUDA_SUCCESS, "context")
    module.cuCtxPushCurrent = lambda context: status(gpu.push)
    module.cuCtxPopCurrent = lambda: status(gpu.pop)
    module.cuCtxSynchronize = lambda: (Status(gpu.cuCtxSynchronize()),)
    module.cuMemAlloc = lambda size: status(lambda: gpu.mem_alloc(size).address)
    module.cuMemFree = lambda address: status(gpu.memory[address].free)
    module.cuMemHostAlloc = lambda size, flags: status(lambda: gpu.pagelocked_empty(size, np.uint8, flags).base.address)
    module.cuMemFreeHost = lambda address: status(gpu.pinned[address].free)
    module.cuStreamCreate = lambda flags: status(lambda: gpu.create_stream(flags))
    module.cuStreamDestroy = lambda stream: status(lambda: gpu.destroy_stream(stream))
    module.cuStreamSynchronize = lambda stream: status(lambda: gpu.synchronize(stream))
    module.cuMemcpyHtoDAsync = lambda address, host, size, stream: status(
        lambda: gpu.upload(address, gpu.pinned_bytes(host, size), stream)
    )
    module.cuMemcpyDtoHAsync = lambda host, address, size, stream: status(
        lambda: gpu.download(gpu.pinned_bytes(host, size), address, stream)
    )
    module.cuStreamBeginCapture = lambda stream, mode: (Status(gpu.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), mode)),)
    module.cuStreamEndCapture = lambda stream: _with_result(gpu.cuStreamEndCapture, ctypes.c_void_p(stream), is_first=False)
    module.cuGraphInstantiate = lambda graph, flags: _with_result(
        gpu.cuGraphInstantiateWithFlags, ctypes.c_void_p(graph), flags, is_first=True
    )
    module.cuGraphLaunch = lambda executable, stream: (
        Status(gpu.cuGraphLaunch(ctypes.c_void_p(executable), ctypes.c_void_p(stream))),
    )
    module.cuGraphDestroy = lambda graph: (Status(gpu.cuGraphDestroy(ctypes.c_void_p(graph))),)
    module.cuGraphExecDestroy = module.cuGraphDestroy
    module.cuEventCreate = lambda flags: _with_result(gpu.cuEventCreate, flags, is_first=True)
    module.cuEventRecord = lambda event, stream: (Status(gpu.cuEventRecord(ctypes.c_void_p(event), ctypes.c_void_p(stream))),)
    module.cuEventElapsedTime = lambda start, end: (Status.CUDA_SUCCESS, gpu.elapsed(start, end))
    module.cuEventDestroy = lambda event: (Status(gpu.cuEventDestroy_v2(ctypes.c_void_p(event))),)
    return module
