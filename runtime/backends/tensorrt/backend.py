"""TensorRT backend: runs engines on the GPU."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import check_images
from runtime.backends.signature import INPUT_NAME, Port, check_signature
from runtime.backends.tensorrt.cuda import Buffer, Device, Graph, open_device
from runtime.backends.tensorrt.engine_info import EngineInfo, check_gpu, check_library, read_engine_info
from runtime.backends.tensorrt.library import TensorRT, dtype_name, load_tensorrt, tensor_shape
from runtime.errors import InputError, ModelError, OutputError
from runtime.files import LARGEST_MODEL, PathLike, atomic_write, read_bytes
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)


class TrtBackend:
    """Runs an engine built by `python -m export.engine`.

    It is loaded only if its manifest says that it fits this machine. Any thread may call `infer`; threads that do so at
    once get an execution context, stream and buffers each.

    Args:
        path: of the engine, with its manifest beside it.

    Raises:
        ModelError: no manifest, changed since it was built, built for another TensorRT or GPU, or not as its spec says.
        MissingComponentError: no TensorRT, pycuda, driver, GPU or GPU memory; with the remedy.
    """

    def __init__(self, path: PathLike) -> None:
        self._path = Path(path)
        self._info = read_engine_info(self._path)
        self._trt = load_tensorrt(self._info.flavor)
        check_library(self._info, self._trt)
        self._device = open_device()
        check_gpu(self._info, self._device.gpu)
        self._lock = threading.Lock()
        self._turns = contextlib.nullcontext() if self._trt.shares_profiles else threading.Lock()
        self._idle: list[_Worker] = []
        with self._device.active():
            self._engine: Any = self._load()
            self._compiled = self._cached_kernels()
            self._config = self._trt.create_runtime_config(self._engine, self._compiled)
            self._idle.append(self._create_worker(self._engine))  # now, so that the first image is as fast as the next

    @property
    def spec(self) -> ModelSpec:
        """Spec in the manifest."""
        return self._info.spec

    @property
    def batch_size(self) -> Optional[int]:
        """The engine's only batch size, or None if it takes several: then any batch is split and padded to fit."""
        smallest, _, largest = self._info.batch
        return largest if smallest == largest else None

    @property
    def title(self) -> str:
        """TensorRT's version and the GPU."""
        return f"{self._trt.title}, {self._device.gpu.name}"

    def infer(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Runs the model; see `Backend.infer`."""
        return self._in_parts(images, _Worker.run)

    def copy(self, images: NDArray[Any]) -> None:
        """Copies as `infer` does, without inference; see `runtime.benchmark.stages.CopyingBackend.copy`."""
        self._in_parts(images, _Worker.copy)

    def _in_parts(self, images: NDArray[Any], work: _Work) -> list[NDArray[np.float32]]:
        """Does `work` on the images, split and padded to batches that the engine takes; returns its outputs."""
        if self._engine is None:
            raise ModelError("the model was closed; open it again")
        check_images(images, self.spec, self.batch_size)
        smallest, _, largest = self._info.batch
        # The last part is padded to the size of the others: another shape would cost a new graph.
        rows = min(max(len(images), smallest), largest)
        outputs = [np.empty((len(images), *shape), np.float32) for shape in self.spec.outputs.values()]
        with self._device.active(), self._borrowed() as worker:
            for start in range(0, len(images), rows):
                part = slice(start, start + rows)
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
                self._keep_kernels()
            self._config = None
            del engine  # while the device is active

    def __enter__(self) -> TrtBackend:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _load(self) -> Any:
        try:
            engine = self._trt.deserialize(
                read_bytes(self._path, LARGEST_MODEL), version_compatible=self._info.version_compatible
            )
        except ModelError as error:
            raise ModelError(f"{self._path}: {error}; {self._info.remedy}") from error
        _check_signature(self._info, self._trt, engine)
        return engine

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[_Worker]:
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

    def _create_worker(self, engine: Any) -> _Worker:
        return _Worker(self._trt, self._device, engine, self._config, self._info)

    @property
    def _cache(self) -> Path:
        return Path(f"{self._path}.cache")

    def _cached_kernels(self) -> Optional[bytes]:
        try:
            return read_bytes(self._cache, LARGEST_MODEL)
        except InputError:
            return None

    def _keep_kernels(self) -> None:
        """Saves the kernels that TensorRT-RTX compiled for this GPU; where it cannot, they are compiled again next time."""
        try:
            compiled = self._trt.compiled_kernels(self._config)
            if compiled != self._compiled:
                with atomic_write(self._cache) as temporary:
                    temporary.write_bytes(compiled)
        except (ModelError, OutputError) as error:
            log.debug("compiled kernels are not kept: %s", error)


_CAPTURE_LOCK = threading.Lock()  # what creates a context allocates memory, which fails while another thread captures


class _Worker:
    """An execution context with its stream, buffers and CUDA graph.

    Used by one thread at a time, with the device active.
    """

    def __init__(self, trt: TensorRT, device: Device, engine: Any, config: Any, info: EngineInfo) -> None:
        self._trt = trt
        self._rows = 0
        self._graph: Optional[Graph] = None
        self._is_capturing = config is None  # else the library captures by itself
        self._runs_to_capture = self._failed_captures = 0
        _, usual, largest = info.batch
        with contextlib.ExitStack() as resources:
            self._stream = device.create_stream()
            resources.callback(self._stream.close)
            self._buffers: dict[str, Buffer] = {}
            for name in _tensor_names(engine):
                dtype = info.spec.input_type if name == INPUT_NAME else "float32"
                self._buffers[name] = device.allocate((largest, *tuple(engine.get_tensor_shape(name))[1:]), dtype)
                resources.callback(self._buffers[name].close)
            with _CAPTURE_LOCK:
                self._context: Any = trt.create_context(engine, config)
            resources.callback(self._drop_context)
            resources.callback(self._drop_graph)
            self._ask(self._set_addresses)
            self._input = self._buffers[INPUT_NAME]
            self._outputs = [self._buffers[name] for name in info.spec.outputs]
            self.run(np.zeros((usual, *info.spec.input_shape), info.spec.input_type), usual)
            self._resources = resources.pop_all()

    def run(self, images: NDArray[Any], rows: int) -> list[NDArray[np.float32]]:
        """Runs a batch of at most `rows`, padded to that; the outputs are valid until the next call.

        Raises:
            ModelError: the run failed; close the worker.
        """
        self._fill(images, rows)
        if rows != self._rows:
            self._reshape(rows)  # and enqueued without a graph: at a new shape the library has to prepare
        elif self._graph is None and self._is_capturing:
            self._capture()
        with self._stream.running():
            if self._graph is None:
                self._enqueue()
            else:
                self._stream.launch(self._graph)
        return [buffer.host[: len(images)] for buffer in self._outputs]

    def _capture(self) -> None:
        """Captures a graph; after a failure it is tried again later, each time after twice as many runs."""
        if self._runs_to_capture:
            self._runs_to_capture -= 1
            return
        with _CAPTURE_LOCK:
            self._graph = self._stream.capture(self._enqueue)
        if self._graph is None:
            self._failed_captures += 1
            self._runs_to_capture = 2**self._failed_captures

    def copy(self, images: NDArray[Any], rows: int) -> list[NDArray[np.float32]]:
        """Copies as `run` does, without inference: the outputs hold old values.

        Raises:
            ModelError: the run failed; close the worker.
        """
        self._fill(images, rows)
        with self._stream.running():
            self._stream.upload(self._input, rows)
            self._download(rows)
        return [buffer.host[: len(images)] for buffer in self._outputs]

    def _fill(self, images: NDArray[Any], rows: int) -> None:
        self._input.host[: len(images)] = images
        self._input.host[len(images) : rows] = 0

    def _reshape(self, rows: int) -> None:
        self._drop_graph()
        self._ask(lambda: self._context.set_input_shape(INPUT_NAME, (rows, *self._input.host.shape[1:])))
        for name, buffer in self._buffers.items():
            needed = tuple(self._context.get_tensor_shape(name))
            if needed != (rows, *buffer.host.shape[1:]):  # the engine would write past its end
                raise ModelError(f"for {rows} images the engine makes {name} {list(needed)}, not one row each; it is damaged")
        self._rows = rows

    def _set_addresses(self) -> bool:
        return all(self._context.set_tensor_address(name, buffer.address) for name, buffer in self._buffers.items())

    def _enqueue(self) -> None:
        self._stream.upload(self._input, self._rows)
        self._ask(lambda: self._context.execute_async_v3(self._stream.handle))
        self._download(self._rows)

    def _download(self, rows: int) -> None:
        for buffer in self._outputs:
            self._stream.download(buffer, rows)

    def _ask(self, call: Callable[[], bool]) -> None:
        """Raises ModelError unless the call succeeds.

        Args:
            call: no bound method of the context, which a traceback would keep alive after `close`.
        """
        self._trt.checked(f"{self._trt.title} cannot run the engine", lambda: call() or None)

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _drop_context(self) -> None:
        self._context = None

    def close(self) -> None:
        """Frees graph and context, then stream and buffers."""
        self._resources.close()


_Work = Callable[[_Worker, NDArray[Any], int], list[NDArray[np.float32]]]
"""`_Worker.run` or `_Worker.copy`."""


def _tensor_names(engine: Any) -> list[str]:
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]


def _check_signature(info: EngineInfo, trt: TensorRT, engine: Any) -> None:
    """Raises ModelError unless the engine's inputs and outputs are what its manifest promises."""
    inputs: list[Port] = []
    outputs: list[Port] = []
    for name in _tensor_names(engine):
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
