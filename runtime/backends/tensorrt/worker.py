"""Holds what one thread runs an engine with: a stream, buffers, and execution contexts with their CUDA graphs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from typing import Any, Callable, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.backends.signature import INPUT_NAME
from runtime.backends.tensorrt.cuda import Buffer, Device, Graph, Stream
from runtime.backends.tensorrt.engine_info import EngineInfo
from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import ModelError

log = logging.getLogger(__name__)

_LARGEST_COUNT = 2
"""Contexts of a worker, each with memory for the largest batch: a full batch and the rest of the images, most often."""
_CAPTURE_LOCK = threading.Lock()  # what creates a context allocates memory, which fails while another thread captures


class Worker:
    """A stream, buffers, and an execution context for each of the last batch sizes.

    Used by one thread at a time, with the device active.

    Args:
        trt: the library.
        device: the GPU.
        engine: an `ICudaEngine`.
        config: TensorRT-RTX's `IRuntimeConfig`, None for other libraries.
        info: the engine's manifest.

    Raises:
        MissingComponentError: too little memory on the GPU.
        ModelError: the engine does not run.
    """

    def __init__(self, trt: TensorRT, device: Device, engine: Any, config: Any, info: EngineInfo) -> None:
        _, usual, largest = info.batch
        self._count = _LARGEST_COUNT if trt.shares_profiles else 1
        self._executions: OrderedDict[int, _Execution] = OrderedDict()  # by batch size, the last used last
        with contextlib.ExitStack() as resources:
            self._stream = device.create_stream()
            resources.callback(self._stream.close)
            buffers: dict[str, Buffer] = {}
            for name in tensor_names(engine):
                shape = (largest, *tuple(engine.get_tensor_shape(name))[1:])
                dtype = info.spec.input_type if name == INPUT_NAME else "float32"
                is_copied = name == INPUT_NAME or name in info.spec.outputs
                buffers[name] = device.allocate(shape, dtype, on_host=is_copied)
                resources.callback(buffers[name].close)
            self._input = buffers[INPUT_NAME]
            self._outputs = [buffers[name] for name in info.spec.outputs]
            given = (trt, engine, config, buffers, self._stream, self._outputs)
            self._create: Callable[[], _Execution] = lambda: _Execution(*given)
            resources.callback(self._close_executions)
            self.run(np.zeros((usual, *info.spec.input_shape), info.spec.input_type), usual)
            self._resources = resources.pop_all()

    def run(self, images: NDArray[Any], rows: int) -> list[NDArray[np.float32]]:
        """Runs a batch of at most `rows`, padded to that; the outputs are valid until the next call.

        Raises:
            ModelError: the run failed; close the worker.
        """
        self._fill(images, rows)
        execution = self._prepared(rows)
        with self._stream.running():
            execution.enqueue()
        return [buffer.host[: len(images)] for buffer in self._outputs]

    def run_timed(self, images: NDArray[Any], rows: int) -> tuple[list[NDArray[np.float32]], float]:
        """Runs as `run` does; returns the milliseconds that the GPU took too, copies included.

        Raises:
            ModelError: the run failed; close the worker.
        """
        self._fill(images, rows)
        execution = self._prepared(rows)
        with self._stream.timed() as milliseconds:
            execution.enqueue()
        return [buffer.host[: len(images)] for buffer in self._outputs], milliseconds[0]

    def copy(self, images: NDArray[Any], rows: int) -> list[NDArray[np.float32]]:
        """Copies as `run` does, without inference: the outputs hold old values.

        Raises:
            ModelError: the run failed; close the worker.
        """
        self._fill(images, rows)
        with self._stream.running():
            self._stream.upload(self._input, rows)
            for buffer in self._outputs:
                self._stream.download(buffer, rows)
        return [buffer.host[: len(images)] for buffer in self._outputs]

    def close(self) -> None:
        """Frees graphs and contexts, then stream and buffers, and lets go of the engine; the worker cannot be used again."""
        self._resources.close()
        del self._create  # which holds the engine: whoever still names the worker would free it when no context is current

    def _fill(self, images: NDArray[Any], rows: int) -> None:
        self._input.host[: len(images)] = images
        self._input.host[len(images) : rows] = 0

    def _prepared(self, rows: int) -> _Execution:
        """Returns the execution of a batch size: the one there is, a new one, or the least recently used one reshaped."""
        execution = self._executions.pop(rows, None)
        if execution is None:
            execution = self._added() or self._executions.popitem(last=False)[1]
        self._executions[rows] = execution
        execution.reshape(rows)
        return execution

    def _added(self) -> Optional[_Execution]:
        """Creates an execution unless there are as many as there may be, or as the GPU has memory for."""
        if len(self._executions) >= self._count:
            return None
        try:
            return self._create()
        except ModelError as error:
            if not self._executions:
                raise
            log.debug("no further context: %s", error)
            self._count = len(self._executions)
            return None

    def _close_executions(self) -> None:
        while self._executions:
            self._executions.popitem()[1].close()


class _Execution:
    """An execution context and the CUDA graph of its batch size; NVIDIA asks for a context for each captured graph."""

    def __init__(
        self, trt: TensorRT, engine: Any, config: Any, buffers: dict[str, Buffer], stream: Stream, outputs: list[Buffer]
    ) -> None:
        self._trt, self._buffers, self._stream, self._outputs = trt, buffers, stream, outputs
        self._config = config  # which has to live as long as the context
        self._rows = 0
        self._graph: Optional[Graph] = None
        self._has_run = False  # at this batch size
        self._is_capturing = config is None  # else the library captures by itself
        self._runs_to_capture = self._failed_captures = 0
        with _CAPTURE_LOCK:
            self._context: Any = trt.create_context(engine, config)
        self._ask(self._set_addresses)

    def reshape(self, rows: int) -> None:
        """Sets the batch size; does nothing if it is that already."""
        if rows == self._rows:
            return
        self._drop_graph()
        self._has_run = False
        self._ask(lambda: self._context.set_input_shape(INPUT_NAME, (rows, *self._buffers[INPUT_NAME].shape[1:])))
        for name, buffer in self._buffers.items():
            needed = tuple(self._context.get_tensor_shape(name))
            if needed != (rows, *buffer.shape[1:]):  # the engine would write past its end
                raise ModelError(f"for {rows} images the engine makes {name} {list(needed)}, not one row each; it is damaged")
        self._rows = rows

    def enqueue(self) -> None:
        """Enqueues copies and inference; from the second run on as a graph, since at a new shape the library prepares."""
        if self._has_run and self._graph is None and self._is_capturing:
            self._capture()
        if self._graph is None:
            self._enqueue()
        else:
            self._stream.launch(self._graph)
        self._has_run = True

    def close(self) -> None:
        """Frees the graph, the context and what that needs, in this order."""
        self._drop_graph()
        self._context = None
        self._config = None

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

    def _enqueue(self) -> None:
        self._stream.upload(self._buffers[INPUT_NAME], self._rows)
        self._ask(lambda: self._context.execute_async_v3(self._stream.handle))
        for buffer in self._outputs:
            self._stream.download(buffer, self._rows)

    def _set_addresses(self) -> bool:
        return all(self._context.set_tensor_address(name, buffer.address) for name, buffer in self._buffers.items())

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


def tensor_names(engine: Any) -> list[str]:
    """Returns the names of an engine's inputs and outputs."""
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
