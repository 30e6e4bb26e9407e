"""A machine with an engine, its manifest and a fake GPU, for the tests of the TensorRT backend.

Every map that the fake computes is the mean of its image plus the number of the level.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.backends.gpu import Gpu
from runtime.backends.tensorrt import cuda
from runtime.backends.tensorrt import library as tensorrt_adapter
from runtime.manifest import manifest_path
from runtime.spec import ModelSpec
from tests.support import engine_manifests
from tests.support.cuda_fakes import FakeGpu
from tests.support.cuda_packages import as_cuda_bindings, as_pycuda
from tests.support.engine_fakes import FakeEngine
from tests.support.tensorrt_fakes import library

Command = Callable[..., tuple[int, str, str]]
SPEC = ModelSpec("tiny", ("dot",), (32, 32), (((8.0, 8.0),), ((4.0, 4.0),)), strides=(32, 16))
FACTS = {**engine_manifests.FACTS, "gpu": "Fake GPU", "compute_capability": "8.6", "hardware_compatible": False}
RTX = {"flavour": "rtx", "version": "1.7.1", "gpu": None, "compute_capability": None}
RUN = ["upload", "execute", "download", "download", "synchronize"]
CAPTURE = ["begin capture", *RUN[:-1], "end capture", "instantiate"]
REPLAY = ["launch", "synchronize"]


@dataclasses.dataclass
class Machine:
    """A machine with one engine, and the GPU that it is loaded to."""

    path: Path
    gpu: FakeGpu
    engine: FakeEngine

    def since(self, start: int) -> list[str]:
        return self.gpu.log[start:]


MakeMachine = Callable[..., Machine]


def numbered(count: int, first: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Each filled with its own number."""
    return np.broadcast_to(np.arange(first, first + count, dtype=np.float32).reshape(-1, 1, 1, 1), (count, 3, *size)).copy()


def check(maps: list[np.ndarray], count: int, first: int = 0) -> None:
    for level, values in enumerate(maps):
        assert values.shape == (count, *SPEC.map_shape(level)) and values.dtype == np.float32
        expected = np.arange(first, first + count, dtype=np.float32).reshape(-1, 1, 1, 1) + level
        assert np.array_equal(values, np.broadcast_to(expected, values.shape))


def swap(path: Path) -> None:
    path.write_bytes(b"another plan")


def edit(**changes: Any) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        content = json.loads(manifest_path(path).read_text())
        content["details"]["engine"].update(changes)
        manifest_path(path).write_text(json.dumps(content))

    return work


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
        api.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")

    def runtime(logger: Any) -> Any:
        def load(plan: bytes) -> FakeEngine | None:
            gpu.check_context()
            logger.log(api.ILogger.Severity.ERROR, "made-up reason")
            return engine if engine and engine.is_loadable else None

        if engine:
            engine.complain = lambda line: logger.log(api.ILogger.Severity.ERROR, line)
        return SimpleNamespace(deserialize_cuda_engine=load)

    api.Runtime = runtime
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean", "tensorrt_lean_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    flavor = "tensorrt_rtx" if version.startswith("1.") else "tensorrt_lean" if is_lean else "tensorrt"
    monkeypatch.setitem(sys.modules, flavor, api)
    monkeypatch.setattr(tensorrt_adapter, "load_tensorrt", tensorrt_adapter.load_tensorrt.__wrapped__)
    monkeypatch.setattr(tensorrt_adapter, "is_installed", lambda name: bool(sys.modules.get(name)))
    monkeypatch.setattr(tensorrt_adapter, "find_gpu", lambda: Gpu("Fake GPU", capability, 28))
    for name in ("pycuda", "cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "pycuda.driver", as_pycuda(gpu) if package == "pycuda" else None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", as_cuda_bindings(gpu) if package == "cuda-bindings" else None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: gpu)
    monkeypatch.setattr(cuda, "find_gpu", lambda: Gpu("Fake GPU", capability, 28))
    monkeypatch.setattr(cuda, "open_device", cuda.open_device.__wrapped__)
    monkeypatch.setattr("runtime.backends.tensorrt.backend.open_device", cuda.open_device)
