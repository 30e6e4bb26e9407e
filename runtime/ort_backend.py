"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.backend import check_images, check_outputs
from runtime.errors import MissingComponentError, ModelError
from runtime.files import PathLike
from runtime.inspection import Inspection, inspection_shapes
from runtime.spec import ModelSpec

INPUT_NAME = "images"


class OrtBackend:
    """Runs an exported ONNX file on the CPU.

    Raises:
        MissingComponentError: onnxruntime is not installed.
        ModelError: not an ONNX file, damaged, without our metadata, or not of the shapes its metadata promises.
    """

    def __init__(self, path: PathLike) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingComponentError("onnxruntime is not installed; run `pip install onnxruntime`") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a different type for every way a file can be wrong
            raise ModelError(f"{path}: not a usable ONNX model ({_first_line(error)})") from error
        try:
            self._spec = ModelSpec.from_metadata(self._session.get_modelmeta().custom_metadata_map)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        self._batch_size = _check_signature(path, self._session, self._spec)
        self._float_outputs = {item.name: item.shape for item in self._session.get_outputs() if item.type == "tensor(float)"}

    @property
    def spec(self) -> ModelSpec:
        """The description in the file's metadata."""
        return self._spec

    @property
    def batch_size(self) -> Optional[int]:
        """The batch size fixed at export, or None."""
        return self._batch_size

    def infer(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See `Backend.infer`."""
        return self._run(self._spec.output_names, images)

    def check_inspectable(self) -> None:
        """See `InspectableBackend.check_inspectable`; ModelError for a file that was exported without `--inspect`."""
        found = {name: shape[1:] for name, shape in self._float_outputs.items()}
        lacking = [name for name, shape in inspection_shapes(self._spec.input_size).items() if found.get(name) != [*shape]]
        if lacking:
            raise ModelError(
                f"the model has no float32 outputs {', '.join(lacking)} that show how it fuses its levels; export it with"
                " `python -m export.onnx --inspect` (a model with ASFF)"
            )

    def inspect(self, images: NDArray[np.float32]) -> Inspection:
        """See `InspectableBackend.inspect`."""
        self.check_inspectable()
        further = inspection_shapes(self._spec.input_size)
        return Inspection.from_arrays(self._run((*self._spec.output_names, *further), images))

    def _run(self, names: Sequence[str], images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        if self._session is None:
            raise ModelError("the model was closed; open it again")
        check_images(images, self._spec, self._batch_size)
        try:
            outputs: list[NDArray[np.float32]] = self._session.run(list(names), {INPUT_NAME: images})
        except Exception as error:  # onnxruntime raises a different type for every way a run can fail
            raise ModelError(f"the model failed to run on {list(images.shape)} ({_first_line(error)})") from error
        return outputs

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def __enter__(self) -> OrtBackend:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _check_signature(path: PathLike, session: Any, spec: ModelSpec) -> Optional[int]:
    """Hold the file's inputs and outputs against its own description; return the fixed batch size, if any."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].name != INPUT_NAME or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{item.name}: {item.type}" for item in inputs)
        raise ModelError(f"{path}: expected one input {INPUT_NAME!r} of tensor(float), found {found}")
    shape = inputs[0].shape
    if shape[1:] != [3, *spec.input_size]:
        raise ModelError(f"{path}: input is {shape}, its description says [N, 3, {spec.input_size[0]}, {spec.input_size[1]}]")
    outputs = session.get_outputs()
    check_outputs(path, spec, [item.name for item in outputs], [item.shape for item in outputs])
    for item in outputs:
        if item.name in spec.output_names and item.type != "tensor(float)":
            raise ModelError(f"{path}: output {item.name} is {item.type}, expected tensor(float); export it again")
    return shape[0] if isinstance(shape[0], int) else None
