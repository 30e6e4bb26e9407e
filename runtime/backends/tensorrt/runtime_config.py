"""TensorRT-RTX's runtime configuration: its own CUDA graphs, and the kernels that it compiles for this GPU, kept in a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Optional

from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import InputError, ModelError, OutputError
from runtime.files import LARGEST_MODEL, atomic_write, read_bytes

log = logging.getLogger(__name__)


class RuntimeConfig:
    """Configuration of the execution contexts of an engine; use and drop it with the device active.

    Args:
        trt: TensorRT-RTX.
        engine: an `ICudaEngine`.
        cache: file of the compiled kernels; ignored if it is absent, or of another GPU or library.

    Attributes:
        handle: the `IRuntimeConfig`.
    """

    def __init__(self, trt: TensorRT, engine: Any, cache: Path) -> None:
        self._trt, self._path = trt, cache
        self._kept = _read(cache)
        self.handle: Any = engine.create_runtime_config()
        self.handle.cuda_graph_strategy = trt.api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        kernels = self.handle.create_runtime_cache()
        if self._kept is not None and not kernels.deserialize(self._kept):
            log.debug("the cached kernels are of another GPU or library; they are compiled again")
        self.handle.set_runtime_cache(kernels)

    def compile_at_once(self) -> None:
        """Makes later contexts compile the kernels of a batch size at its first run, instead of beside the runs that follow."""
        strategies = self._trt.api.DynamicShapesKernelSpecializationStrategy
        self.handle.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER

    def save(self) -> None:
        """Writes the kernels to the file if there are new ones; where it cannot, they are compiled again next time."""
        try:
            kernels = bytes(self._trt.checked("compiled kernels", self.handle.get_runtime_cache().serialize))
            if kernels != self._kept:
                with atomic_write(self._path) as temporary:
                    temporary.write_bytes(kernels)
        except (ModelError, OutputError) as error:
            log.debug("compiled kernels are not kept: %s", error)


def create_runtime_config(trt: TensorRT, engine: Any, path: Path) -> Optional[RuntimeConfig]:
    """Creates the configuration of an engine in the file `path`; None for other libraries than TensorRT-RTX."""
    return RuntimeConfig(trt, engine, Path(f"{path}.cache")) if hasattr(trt.api, "CudaGraphStrategy") else None


def _read(cache: Path) -> Optional[bytes]:
    try:
        return read_bytes(cache, LARGEST_MODEL)
    except InputError:
        return None
