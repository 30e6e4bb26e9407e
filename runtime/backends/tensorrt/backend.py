"""TensorRT backend: runs engines on the GPU."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import check_images
from runtime.backends.signature import INPUT_NAME, Port, check_signature
from runtime.backends.tensorrt.cuda import open_device
from runtime.backends.tensorrt.engine_info import EngineInfo, check_gpu, check_library, read_engine_info
from runtime.backends.tensorrt.library import TensorRT, dtype_name, load_runtime, tensor_shape
from runtime.backends.tensorrt.runtime_config import create_runtime_config
from runtime.backends.tensorrt.worker import Worker, tensor_names
from runtime.console.exits import run_first
from runtime.errors import ModelError
from runtime.files import LARGEST_MODEL, PathLike, read_bytes
from runtime.spec import ModelSpec

_Work = Callable[[Worker, NDArray[Any], int], list[NDArray[np.float32]]]
"""Such as `Worker.run`."""
_LARGEST_COUNT = 4
"""Threads that run an engine at once; further ones wait, since each takes memory for the largest batch."""
_open: weakref.WeakSet[TrtBackend] = weakref.WeakSet()


def _close_all() -> None:
    """Closes the models that nobody closed, while the GPU's driver still answers."""
    for backend in list(_open):
        with contextlib.suppress(ModelError):  # of a GPU that answers no more
            backend.close()


class TrtBackend:
    """Runs an engine built by `python -m export.engine`.

    It is loaded only if its manifest says that it fits this machine. Any thread may call `infer`; threads that do so at
    once get an execution context, stream and buffers each.

    Args:
        path: of the engine, with its manifest beside it.

    Raises:
        ModelError: no manifest, changed since it was built, built for another TensorRT or GPU, or not as its spec says.
        MissingComponentError: no TensorRT, CUDA package, driver, GPU or GPU memory; with the remedy.
    """

    def __init__(self, path: PathLike) -> None:
        self._engine: Any = None
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._path = Path(path)
        self._info = read_engine_info(self._path)
        self._trt = load_runtime(self._info.flavor, version_compatible=self._info.version_compatible)
        check_library(self._info, self._trt)
        self._device = open_device()
        check_gpu(self._info, self._device.gpu)
        self._turns = threading.BoundedSemaphore(_LARGEST_COUNT if self._trt.shares_profiles else 1)
        run_first(_close_all)
        _open.add(self)
        with self._device.active():
            engine = self._load()
            self._config = create_runtime_config(self._trt, engine, self._path)
            self._idle.append(self._create_worker(engine))  # now, so that the first image is as fast as the next
            self._engine = engine

    @property
    def spec(self) -> ModelSpec:
        """Spec in the manifest."""
        return self._info.spec

    @property
    def batch_size(self) -> Optional[int]:
        """The engine's only batch size, or None if it takes several: then any batch is split or padded to fit."""
        smallest, _, largest = self._info.batch
        return largest if smallest == largest else None

    @property
    def title(self) -> str:
        """TensorRT's version and the GPU."""
        return f"{self._trt.title}, {self._device.gpu.name}"

    def infer(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Runs the model; see `Backend.infer`."""
        return self._in_parts(images, Worker.run)

    def infer_timed(self, images: NDArray[Any]) -> tuple[list[NDArray[np.float32]], float]:
        """Runs the model; see `runtime.benchmark.stages.TimedBackend.infer_timed`."""
        spent: list[float] = []

        def run(worker: Worker, part: NDArray[Any], rows: int) -> list[NDArray[np.float32]]:
            outputs, milliseconds = worker.run_timed(part, rows)
            spent.append(milliseconds)
            return outputs

        return self._in_parts(images, run), sum(spent)

    def compile_at_once(self) -> None:
        """Makes runs from now on as fast as they get, see `RuntimeConfig.compile_at_once`; only TensorRT-RTX needs it."""
        if self._config is None:
            return
        with self._lock:
            idle, self._idle = self._idle, []
        with self._device.active():
            self._config.compile_at_once()
            for worker in idle:  # whose contexts compile as before
                worker.close()

    def copy(self, images: NDArray[Any]) -> None:
        """Copies as `infer` does, without inference; see `runtime.benchmark.stages.CopyingBackend.copy`."""
        self._in_parts(images, Worker.copy)

    def _in_parts(self, images: NDArray[Any], work: _Work) -> list[NDArray[np.float32]]:
        """Does `work` on the images, split and padded to batches that the engine takes; returns its outputs."""
        if self._engine is None:
            raise ModelError("the model was closed; open it again")
        check_images(images, self.spec, self.batch_size)
        smallest, _, largest = self._info.batch
        outputs = [np.empty((len(images), *shape), np.float32) for shape in self.spec.outputs.values()]
        with self._device.active(), self._borrowed() as worker:
            for start in range(0, len(images), largest):
                part = slice(start, start + largest)
                rows = max(len(images[part]), smallest)
                for output, result in zip(outputs, work(worker, images[part], rows)):
                    output[part] = result
        return outputs

    def close(self) -> None:
        """Frees the engine without waiting; a run in another thread ends as usual, and what it uses is freed then."""
        with self._lock:
            engine, self._engine = self._engine, None
            idle, self._idle = self._idle, []
        if engine is None:
            return
        with self._device.active():
            for worker in idle:
                worker.close()
            if self._config is not None:
                self._config.save()
            self._config = None
            del engine  # while the device is active

    def __del__(self) -> None:
        with contextlib.suppress(ModelError):
            self.close()  # on whichever thread: otherwise what it holds on the GPU would stay there

    def __enter__(self) -> TrtBackend:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _load(self) -> Any:
        try:
            engine = self._trt.deserialize(
                read_bytes(self._path, LARGEST_MODEL),
                version_compatible=self._info.version_compatible,
                dla_core=self._info.dla_core,
            )
        except ModelError as error:
            raise ModelError(f"{self._path}: {error}; {self._info.remedy}") from error
        _check_signature(self._info, self._trt, engine)
        return engine

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Worker]:
        """Lends a worker that no other thread uses; one that fails is closed."""
        with self._turns:
            with self._lock:
                engine = self._engine
                worker = self._idle.pop() if self._idle else None
            if engine is None:
                raise ModelError("the model was closed; open it again")
            worker = worker or self._create_worker(engine)
            try:
                yield worker
            except BaseException:
                worker.close()
                raise
            with self._lock:
                is_open = self._engine is not None
                if is_open:
                    self._idle.append(worker)
            if not is_open:
                worker.close()

    def _create_worker(self, engine: Any) -> Worker:
        return Worker(self._trt, self._device, engine, self._config and self._config.handle, self._info)


def _check_signature(info: EngineInfo, trt: TensorRT, engine: Any) -> None:
    """Raises ModelError unless the engine's inputs and outputs are what its manifest promises."""
    inputs: list[Port] = []
    outputs: list[Port] = []
    for name in tensor_names(engine):
        port = Port(name, dtype_name(engine.get_tensor_dtype(name)), tensor_shape(engine.get_tensor_shape(name)))
        is_input = engine.get_tensor_mode(name) == trt.api.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(port)
    fixed = check_signature(info.path, inputs, outputs, info.spec, info.remedy)
    for port in outputs:  # the engine writes all of them, to buffers of float32
        if port.dtype != "float32":
            raise ModelError(f"{info.path}: output {port.name} is {port.dtype}, expected float32; {info.remedy}")
    profile = [(fixed,)] * 2 if fixed else engine.get_tensor_profile_shape(INPUT_NAME, 0)
    first, last = profile[0][0], profile[-1][0]
    smallest, _, largest = info.batch
    if (first, last) != (smallest, largest):
        raise ModelError(
            f"{info.path}: takes {first} to {last} images, its manifest says {smallest} to {largest}; {info.remedy}"
        )
