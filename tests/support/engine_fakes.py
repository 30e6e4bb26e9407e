"""A made-up TensorRT engine and its contexts, on the made-up GPU of `cuda_fakes`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from runtime.spec import ModelSpec
from tests.support.cuda_fakes import FakeGpu, PycudaError


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
