"""A made-up TensorRT whose engines compute on the host-memory libcuda of `host_cuda`, for programs that run over it.

Each value of an output is the mean of its image, plus the output's number. Engines and contexts hold memory of the GPU, which
needs the context of the thread that gives them back.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime.manifest import Origin, write_manifest
from runtime.spec import ModelSpec
from tests.support.engine_fakes import FakeContext, FakeEngine
from tests.support.engine_manifests import FACTS
from tests.support.tensorrt_fakes import library

VERSION = FACTS["version"]
_MODULES = {"cuda-bindings": "cuda.bindings.driver", "pycuda": "pycuda.driver"}
driver: Any = None
"""The library, once `install` has loaded it."""


def write_engine(path: Path, spec: ModelSpec, batch: tuple[int, int, int] = (1, 1, 8)) -> Path:
    """Writes an engine for the made-up TensorRT, and its manifest."""
    path.write_text(json.dumps({"spec": spec.to_metadata(), "batch": [batch[0], batch[2]]}))
    facts = {**FACTS, "gpu": "Host memory", "batch": dict(zip(("min", "opt", "max"), batch))}
    write_manifest(path, spec, [Origin("onnx", "model.onnx", "0")], {"engine": facts})
    return path


def install() -> None:
    """Makes `import tensorrt` the made-up one, and leaves one CUDA package; call it before anything else of the runtime."""
    global driver
    driver = ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)  # for a pycuda that was built where there is no driver
    atexit.register(driver.host_cuda_report)  # Ctrl-C ends a process without the library's own end
    wanted = os.environ["HOST_CUDA_PACKAGE"]
    for package, module in _MODULES.items():
        if package != wanted:
            sys.modules[module] = None  # type: ignore[assignment]
    api = library(VERSION)
    api.TensorIOMode = SimpleNamespace(INPUT="IN", OUTPUT="OUT")
    api.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=_load)
    sys.modules["tensorrt"] = api


def account() -> dict[str, Any]:
    """What is taken at the moment, as `host_cuda.Program.account`."""
    driver.host_cuda_report()
    found: dict[str, Any] = json.loads(Path(os.environ["HOST_CUDA_REPORT"]).read_text())
    return found


def fail(name: str, call: int, result: int) -> None:
    """Lets the call of that name, counted from 1 from now on, fail; 700 is for good."""
    driver.host_cuda_fail(name.encode(), call, result)


def _load(plan: bytes) -> HostEngine:
    content = json.loads(plan)
    return HostEngine(ModelSpec.from_metadata(content["spec"]), tuple(content["batch"]))


def _asked(name: str, *arguments: Any) -> None:
    status = getattr(driver, name)(*arguments)
    assert status == 0, f"{name}: {status}"


class _Held:
    """A little memory of the GPU, which needs the context to be freed."""

    def __init__(self) -> None:
        self._address = ctypes.c_ulonglong()
        _asked("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(1))

    def __del__(self, free: Callable[..., int] = lambda address: int(driver.cuMemFree_v2(address))) -> None:
        free(self._address)


class HostEngine(FakeEngine):
    """An engine on the double."""

    def __init__(self, spec: ModelSpec, batch: tuple[int, int]) -> None:
        super().__init__(None, spec, batch, {})  # type: ignore[arg-type]
        self._held = _Held()

    def create_execution_context(self, config: Any = None) -> HostContext:
        return HostContext(self)


class HostContext(FakeContext):
    """An execution context on the double."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine, self.addresses, self._held = engine, {}, _Held()

    def __del__(self) -> None:
        """Nothing: `_held` goes by itself."""

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        rows, *inner = self.shape
        for number, name in enumerate(name for name in self.engine.shapes if name != "images"):
            status = driver.host_cuda_mean(
                ctypes.c_void_p(stream),
                ctypes.c_ulonglong(self.addresses["images"]),
                ctypes.c_int(self.engine.types["images"] == "UINT8"),
                ctypes.c_size_t(rows),
                ctypes.c_size_t(_product(inner)),
                ctypes.c_ulonglong(self.addresses[name]),
                ctypes.c_size_t(_product(self.engine.shapes[name][1:])),
                ctypes.c_float(number),
            )
            if status:
                return False
        return True


def _product(sides: Any) -> int:
    result = 1
    for side in sides:
        result *= side
    return result
