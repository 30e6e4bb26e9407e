"""Common part of the backends that run ONNX files: signature check, inspection, checked runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Optional, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import check_images, check_outputs
from runtime.backends.inspection import Inspection, inspection_shapes
from runtime.backends.onnx_metadata import has_external_data
from runtime.backends.signature import Port, check_signature
from runtime.errors import ModelError
from runtime.files import PathLike
from runtime.spec import ModelSpec

Compute = Callable[[Sequence[str], NDArray[Any]], list[NDArray[np.float32]]]
"""Runs a model: names of outputs and the input to the values of those outputs. Any thread calls it; it may raise anything."""

_Self = TypeVar("_Self", bound="OnnxBackend")


class OnnxBackend:
    """An opened ONNX file; a subclass loads it with its library.

    Args:
        path: of the file, for messages.
        title: library, version and device, for messages.
        metadata: the file's `metadata_props`.
        inputs: of the file.
        outputs: of the file, inspection outputs included.
        compute: runs the file; released by `close`.

    Attributes:
        title: as given.

    Raises:
        ModelError: the file keeps weights in other files, has no spec in its metadata, or does not have the inputs and outputs
            of its spec.
    """

    def __init__(
        self,
        path: PathLike,
        title: str,
        metadata: Mapping[str, str],
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        compute: Compute,
    ) -> None:
        self.title = title
        if has_external_data(path):
            raise ModelError(
                f"{path}: keeps weights in other files, which no hash of it covers; put all into one file"
                " (`onnx.save(onnx.load(path), path)`)"
            )
        try:
            self._spec = ModelSpec.from_metadata(metadata)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        self._batch_size = check_signature(path, inputs, outputs, self._spec)
        self._float_outputs = {item.name: item.shape for item in outputs if item.dtype == "float32"}
        self._compute: Optional[Compute] = compute

    @property
    def spec(self) -> ModelSpec:
        """Spec in the file's metadata."""
        return self._spec

    @property
    def batch_size(self) -> Optional[int]:
        """Batch size fixed at export, or None for any."""
        return self._batch_size

    def infer(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Runs the model; see `Backend.infer`."""
        return self._run(self._spec.outputs, images)

    def check_inspectable(self) -> None:
        """Raises ModelError for a file that was exported without `--inspect`."""
        found = {name: shape[1:] for name, shape in self._float_outputs.items()}
        lacking = [name for name, shape in inspection_shapes(self._spec.input_size).items() if found.get(name) != shape]
        if lacking:
            raise ModelError(
                f"the model has no float32 outputs {', '.join(lacking)} that show how it fuses its levels; export it with"
                " `python -m export.onnx --inspect` (a model with ASFF)"
            )

    def inspect(self, images: NDArray[Any]) -> Inspection:
        """Runs the model with its inspection outputs; see `InspectableBackend.inspect`."""
        self.check_inspectable()
        inspected = inspection_shapes(self._spec.input_size)
        return Inspection.from_arrays(self._run({**self._spec.outputs, **inspected}, images))

    def _run(self, shapes: Mapping[str, tuple[int, ...]], images: NDArray[Any]) -> list[NDArray[np.float32]]:
        compute = self._compute  # read once: another thread may close the model meanwhile
        if compute is None:
            raise ModelError("the model was closed; open it again")
        check_images(images, self._spec, self._batch_size)
        try:
            outputs = compute(tuple(shapes), images)
        except Exception as error:  # every library raises a different type for every way a run can fail
            raise ModelError(f"the model failed to run on {list(images.shape)} ({telling_line(error)})") from error
        check_outputs(outputs, shapes, len(images))
        return outputs

    def close(self) -> None:
        """Releases the model without waiting; a run in another thread ends as usual, and the model is freed then."""
        self._compute = None

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def telling_line(error: Exception) -> str:
    """Returns the first line of a library's message that does not just say where the error was raised."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    telling = [line for line in lines if not line.startswith(("Exception from ", "Check ", "FrontEnd API "))]
    return (telling or lines or [type(error).__name__])[0]
