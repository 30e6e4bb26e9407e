"""What the backends of ONNX files share: a file is held against its own description, every run is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Optional, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import check_images
from runtime.backends.inspection import Inspection, inspection_shapes
from runtime.backends.signature import Port, check_signature
from runtime.errors import ModelError
from runtime.files import PathLike
from runtime.spec import ModelSpec

Compute = Callable[[Sequence[str], NDArray[Any]], list[NDArray[np.float32]]]
"""Names of outputs and the input's values, to the values of those outputs; may raise anything, may be called by any thread."""

_Self = TypeVar("_Self", bound="OnnxBackend")


class OnnxBackend:
    """An opened ONNX file. A subclass loads it, and passes on what its library found in it and how it is run.

    Args:
        path: of the file, for messages.
        title: what runs it, for people: library, version, device.
        metadata: the file's `metadata_props`.
        inputs, outputs: of the file. compute: runs it; let go of when closed.

    Attributes:
        title: as given.

    Raises:
        ModelError: without our metadata, or not of the shapes its metadata promises.
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
        try:
            self._spec = ModelSpec.from_metadata(metadata)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        self._batch_size = check_signature(path, inputs, outputs, self._spec)
        self._float_outputs = {item.name: item.shape for item in outputs if item.dtype == "float32"}
        self._compute: Optional[Compute] = compute

    @property
    def spec(self) -> ModelSpec:
        """The description in the file's metadata."""
        return self._spec

    @property
    def batch_size(self) -> Optional[int]:
        """The batch size fixed at export, or None."""
        return self._batch_size

    def infer(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """See `Backend.infer`."""
        return self._run(tuple(self._spec.outputs), images)

    def check_inspectable(self) -> None:
        """See `InspectableBackend.check_inspectable`; ModelError for a file that was exported without `--inspect`."""
        found = {name: shape[1:] for name, shape in self._float_outputs.items()}
        lacking = [name for name, shape in inspection_shapes(self._spec.input_size).items() if found.get(name) != shape]
        if lacking:
            raise ModelError(
                f"the model has no float32 outputs {', '.join(lacking)} that show how it fuses its levels; export it with"
                " `python -m export.onnx --inspect` (a model with ASFF)"
            )

    def inspect(self, images: NDArray[Any]) -> Inspection:
        """See `InspectableBackend.inspect`."""
        self.check_inspectable()
        further = inspection_shapes(self._spec.input_size)
        return Inspection.from_arrays(self._run((*self._spec.outputs, *further), images))

    def _run(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[np.float32]]:
        compute = self._compute  # looked at once: another thread may close the model meanwhile
        if compute is None:
            raise ModelError("the model was closed; open it again")
        check_images(images, self._spec, self._batch_size)
        try:
            outputs = compute(names, images)
        except Exception as error:  # every library raises a different type for every way a run can fail
            raise ModelError(f"the model failed to run on {list(images.shape)} ({telling_line(error)})") from error
        for name, output in zip(names, outputs):
            if len(output) != len(images):  # all that a file's signature leaves open
                raise ModelError(f"output {name} is {list(output.shape)} for a batch of {len(images)}; export the model again")
        return outputs

    def close(self) -> None:
        """Free the model; a run in another thread ends first."""
        self._compute = None

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def telling_line(error: Exception) -> str:
    """The line of a library's message that says what is wrong: the first that does not just say where it was raised."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    telling = [line for line in lines if not line.startswith(("Exception from ", "Check ", "FrontEnd API "))]
    return (telling or lines or [type(error).__name__])[0]
