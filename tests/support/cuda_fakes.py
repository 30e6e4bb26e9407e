"""A made-up GPU: what cuda-bindings, pycuda and libcuda offer of one, and a TensorRT engine on it.

It proves order and ownership, never numbers: work runs when the stream is waited for and not before, every call needs the
context on its thread, freed memory cannot be used, and everything that was taken is on a list until it is given back.
"""

from __future__ import annotations

import ctypes
import enum
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.backends.gpu import Gpu
from runtime.backends.tensorrt import cuda
from runtime.backends.tensorrt import library as tensorrt_adapter
from runtime.spec import ModelSpec
from tests.support.tensorrt_fakes import library

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

    def destroy_stream(self, stream: int) -> None:
        self.give_back(stream)
        del self.streams[stream]

    # pycuda.driver

    def pycuda(self) -> Any:
        module: Any = ModuleType("pycuda.driver")
        module.Error, module.init = PycudaError, lambda: None
        module.Device = lambda index: SimpleNamespace(retain_primary_context=lambda: SimpleNamespace(push=self._push))
        module.Context = SimpleNamespace(pop=self._pop)
        module.Stream = lambda flags=0: Stream(self, flags)
        module.pagelocked_empty = self._pagelocked_empty
        module.mem_alloc = self._mem_alloc
        module.memcpy_htod_async = lambda address, host, stream: self.upload(address, host, stream.handle)
        module.memcpy_dtoh_async = lambda host, address, stream: self.download(host, address, stream.handle)
        return module

    # cuda.bindings.driver

    def cuda_bindings(self) -> Any:
        module: Any = ModuleType("cuda.bindings.driver")
        module.CUstreamCaptureMode = ctypes.c_int
        module.cuInit = lambda flags: (Status.CUDA_SUCCESS,)
        module.cuDeviceGet = lambda index: (Status.CUDA_SUCCESS, index)
        module.cuDevicePrimaryCtxRetain = lambda device: (Status.CUDA_SUCCESS, "context")
        module.cuCtxPushCurrent = lambda context: self._status(self._push)
        module.cuCtxPopCurrent = lambda: self._status(self._pop)
        module.cuCtxSynchronize = lambda: (Status(self.cuCtxSynchronize()),)
        module.cuMemAlloc = lambda size: self._status(lambda: self._mem_alloc(size).address)
        module.cuMemFree = lambda address: self._status(self.memory[address].free)
        module.cuMemHostAlloc = lambda size, flags: self._status(lambda: self._pagelocked_empty(size, np.uint8).base.address)
        module.cuMemFreeHost = lambda address: self._status(self.pinned[address].free)
        module.cuStreamCreate = lambda flags: self._status(lambda: self.create_stream(flags))
        module.cuStreamDestroy = lambda stream: self._status(lambda: self.destroy_stream(stream))
        module.cuStreamSynchronize = lambda stream: self._status(lambda: self.synchronize(stream))
        module.cuMemcpyHtoDAsync = lambda address, host, size, stream: self._status(
            lambda: self.upload(address, self._pinned_bytes(host, size), stream)
        )
        module.cuMemcpyDtoHAsync = lambda host, address, size, stream: self._status(
            lambda: self.download(self._pinned_bytes(host, size), address, stream)
        )
        module.cuStreamBeginCapture = lambda stream, mode: (
            Status(self.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), mode)),
        )
        module.cuStreamEndCapture = lambda stream: _with_result(
            self.cuStreamEndCapture, ctypes.c_void_p(stream), is_first=False
        )
        module.cuGraphInstantiate = lambda graph, flags: _with_result(
            self.cuGraphInstantiateWithFlags, ctypes.c_void_p(graph), flags, is_first=True
        )
        module.cuGraphLaunch = lambda executable, stream: (
            Status(self.cuGraphLaunch(ctypes.c_void_p(executable), ctypes.c_void_p(stream))),
        )
        module.cuGraphDestroy = lambda graph: (Status(self.cuGraphDestroy(ctypes.c_void_p(graph))),)
        module.cuGraphExecDestroy = module.cuGraphDestroy
        return module

    def _status(self, call: Callable[[], Any]) -> tuple[Any, ...]:
        try:
            return Status.CUDA_SUCCESS, call()
        except PycudaError:
            return Status.CUDA_ERROR_ILLEGAL_ADDRESS, None

    def _pinned_bytes(self, address: int, size: int) -> Any:
        for start, pinned in self.pinned.items():
            if start <= address and address + size <= start + pinned.memory.nbytes:
                return np.asarray(pinned).reshape(-1).view(np.uint8)[address - start :][:size]
        raise AssertionError("not pinned memory, or freed")

    def _push(self) -> None:
        self._threads.depth = getattr(self._threads, "depth", 0) + 1

    def _pop(self) -> None:
        self.check_context()
        self._threads.depth -= 1

    def _pagelocked_empty(self, shape: Sequence[int], dtype: Any) -> Any:
        self.call("pinned")
        return np.asarray(Pinned(self, shape, dtype))

    def _mem_alloc(self, size: int) -> DeviceMemory:
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

    def _keep(self, work: list[Work]) -> int:
        self.addresses += 1
        self.graphs[self.addresses] = work
        self.take(self.addresses)
        return self.addresses


class FakeContext:
    """An execution context: each value of an output is the mean of its image, plus the output's number."""

    def __init__(self, engine: FakeEngine) -> None:
        engine.gpu.call("context")
        self.engine, self.gpu = engine, engine.gpu
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.in_use = threading.Lock()
        self.nvtx_verbosity = "DETAILED"
        self.token = object()
        self.gpu.take(self.token)

    def __del__(self) -> None:
        if hasattr(self, "token"):
            self.gpu.give_back(self.token)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in self.gpu.memory
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        self.gpu.log.append(f"shape {shape[0]}")
        smallest, largest = self.engine.batch
        self.shape = shape
        return smallest <= shape[0] <= largest

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rows = self.shape[0] * (1 if name == "images" else self.engine.rows_per_image)
        return (rows, *self.engine.shapes[name][1:])

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self.addresses) == set(self.engine.shapes)
        assert self.nvtx_verbosity == "NONE", "detailed profiling slows every run"
        assert self.in_use.acquire(blocking=False), "two threads in one context"
        try:
            self.gpu.call("execute")
        except PycudaError:
            self.engine.complain("made-up failure")
            return False
        finally:
            self.in_use.release()
        shape = self.shape
        self.gpu.put(stream, lambda: self._work(shape))
        return True

    def _work(self, shape: tuple[int, ...]) -> None:
        dtype = np.uint8 if self.engine.types["images"] == "UINT8" else np.float32
        images = self.gpu.memory[self.addresses["images"]].array(shape, dtype)
        means = images.reshape(shape[0], -1).mean(axis=1, dtype=np.float32)
        for number, name in enumerate(name for name in self.engine.shapes if name != "images"):
            inner = self.engine.shapes[name][1:]
            target = self.gpu.memory[self.addresses[name]].array((shape[0], *inner), np.float32)
            target[:] = (means + number + self.engine.offset).reshape(-1, *(1 for _ in inner))


class FakeEngine:
    """An engine for models of this spec, with further outputs."""

    def __init__(self, gpu: FakeGpu, spec: ModelSpec, batch: tuple[int, int], further: dict[str, tuple[int, int, int]]) -> None:
        self.gpu, self.batch, self.profile = gpu, batch, batch
        rows = -1 if batch[0] != batch[1] else batch[0]
        inner = {"images": spec.input_shape, **spec.outputs, **further}
        self.shapes: dict[str, tuple[int, ...]] = {name: (rows, *shape) for name, shape in inner.items()}
        self.types = {**dict.fromkeys(self.shapes, "FLOAT"), "images": "UINT8" if spec.input_type == "uint8" else "FLOAT"}
        self.num_io_tensors, self.is_loadable = len(self.shapes), True
        self.offset = 0.0  # of every value
        self.rows_per_image = 1  # of every output
        self.complain: Callable[[str], None] = lambda line: None
        self.configs: list[Any] = []
        self.free_contexts: int | None = None  # how many there is memory for

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "IN" if name.startswith("images") else "OUT"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.types[name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert (name, index) == ("images", 0)
        smallest, largest = self.profile
        return [(rows, *self.shapes[name][1:]) for rows in (smallest, smallest, largest)]

    def create_execution_context(self, config: Any = None) -> FakeContext | None:
        if self.free_contexts == 0:
            self.complain("made-up lack of memory")
            return None
        self.configs.append(config)
        return FakeContext(self)

    def create_runtime_config(self) -> Any:
        self.config = RuntimeConfig(cuda_graph_strategy="DISABLED", create_runtime_cache=lambda: KernelCache(self.gpu))
        self.config.set_runtime_cache = lambda cache: setattr(self, "cache", cache)
        self.config.get_runtime_cache = lambda: self.cache
        return self.config


class RuntimeConfig(SimpleNamespace):
    """TensorRT-RTX's configuration of contexts."""


class KernelCache:
    """TensorRT-RTX's compiled kernels; accepts what begins like its own."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.content = gpu, b"kernels"

    def deserialize(self, content: bytes) -> bool:
        self.gpu.check_context()
        if content.startswith(b"kernels"):
            self.content = content
        return self.content is content

    def serialize(self) -> bytes:
        self.gpu.check_context()
        return self.content


def install(
    monkeypatch: pytest.MonkeyPatch,
    gpu: FakeGpu,
    engine: FakeEngine | None,
    version: str,
    capability: str,
    package: str = "cuda-bindings",
    is_lean: bool = False,
) -> None:
    """Make this machine one with that GPU, on which a TensorRT of that version loads `engine` from any plan.

    `package` is the one that reaches the GPU: cuda-bindings or pycuda. `is_lean`: TensorRT's lean runtime alone is installed.
    """
    api = library(version)
    api.TensorIOMode = SimpleNamespace(INPUT="IN", OUTPUT="OUT")
    if version.startswith("1."):
        api.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE")

    def runtime(logger: Any) -> Any:
        def load(plan: bytes) -> FakeEngine | None:
            gpu.check_context()
            logger.log(api.ILogger.Severity.ERROR, "made-up reason")
            return engine if engine and engine.is_loadable else None

        if engine:
            engine.complain = lambda line: logger.log(api.ILogger.Severity.ERROR, line)
        return SimpleNamespace(deserialize_cuda_engine=load)

    api.Runtime = runtime
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    flavor = "tensorrt_rtx" if version.startswith("1.") else "tensorrt_lean" if is_lean else "tensorrt"
    monkeypatch.setitem(sys.modules, flavor, api)
    monkeypatch.setattr(tensorrt_adapter, "load_tensorrt", tensorrt_adapter.load_tensorrt.__wrapped__)
    monkeypatch.setattr(tensorrt_adapter, "is_installed", lambda name: bool(sys.modules.get(name)))
    monkeypatch.setattr(tensorrt_adapter, "find_gpu", lambda: Gpu("Fake GPU", capability, 28))
    for name in ("pycuda", "cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "pycuda.driver", gpu.pycuda() if package == "pycuda" else None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu.cuda_bindings() if package == "cuda-bindings" else None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: gpu)
    monkeypatch.setattr(cuda, "find_gpu", lambda: Gpu("Fake GPU", capability, 28))
    monkeypatch.setattr(cuda, "open_device", cuda.open_device.__wrapped__)
    monkeypatch.setattr("runtime.backends.tensorrt.backend.open_device", cuda.open_device)
