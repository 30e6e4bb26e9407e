"""OpenVINO, for CPUs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.onnx_base import OnnxBackend, telling_line
from runtime.backends.signature import INPUT_NAME, Port
from runtime.errors import InputError, MissingComponentError, ModelError
from runtime.files import PathLike

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""What `precision` may be, and what OpenVINO calls it."""


class OpenVinoBackend(OnnxBackend):
    """Runs an exported ONNX file on the CPU with OpenVINO. May be used by several threads at once.

    Left alone, OpenVINO computes a float32 file in bfloat16 where the CPU has it, which costs 2 to 6 % of the output's scale.
    8-bit operators run in 8 bits only if their values are unsigned, as `python -m calibration --target cpu` makes them.

    Args:
        path: the file.
        precision: what its floating-point operators compute in: `float32`, or `bfloat16` for speed.

    Raises:
        InputError: no such precision.
        MissingComponentError: openvino is not installed, or the CPU has no bfloat16.
        ModelError: not an ONNX file, damaged, without our metadata, or not of the shapes its metadata promises.
    """

    def __init__(self, path: PathLike, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        try:
            openvino: Any = import_module("openvino")
        except ImportError as error:
            raise MissingComponentError("openvino is not installed; run `pip install openvino`") from error
        core = openvino.Core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise MissingComponentError("this CPU does not compute in bfloat16; use float32 with --backend openvino")
        try:
            model = _read(path)
            signed = _quantizes_to_signed(model)
            compiled = core.compile_model(model, "CPU", _options(precision, signed))
            metadata, inputs, outputs = _metadata(model), list(_ports(model.inputs)), list(_ports(model.outputs))
        except Exception as error:  # openvino raises RuntimeError and others for whatever is wrong with a file
            raise ModelError(f"{path}: not a usable ONNX model ({telling_line(error)})") from error
        super().__init__(
            path,
            f"OpenVINO {openvino.__version__.split('-')[0]}, CPU, {precision}{' for 8-bit operators too' if signed else ''}",
            metadata,
            inputs,
            outputs,
            _Requests(compiled).run,
        )


class _Requests:
    """A request computes for one thread at a time, so there are as many as threads ever ran at once."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: deque[Any] = deque()

    def run(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[np.float32]]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        # The input is read where it lies; of the outputs, which the next run overwrites, those that are wanted are copied.
        outputs = request.infer({INPUT_NAME: images}, share_inputs=True, share_outputs=True)
        found = [np.array(outputs[name]) for name in names]
        self._idle.append(request)  # one that failed is not used again
        return found


def _read(path: PathLike) -> Any:
    """Read an ONNX file, by the reader for that alone: `Core.read_model` tries all formats there are, and they complain."""
    frontend = import_module("openvino.frontend").FrontEndManager().load_by_framework("onnx")
    return frontend.convert(frontend.load(str(path)))


def _quantizes_to_signed(model: Any) -> bool:
    """Whether activations are quantized to int8 rather than uint8."""
    return any(
        item.get_type_name() == "Convert"
        and item.get_output_element_type(0).to_dtype() == np.int8
        and item.input_value(0).get_node().get_type_name() == "FakeQuantize"
        for item in model.get_ops()
    )


def _options(precision: str, signed: bool) -> dict[str, Any]:
    """How to compile: accuracy first.

    With signed activations OpenVINO's 8-bit arithmetic does not compute what the file says: from the convolution behind the
    concatenated poolings on, the outputs were 20 to 30 % off (2025.0 and 2026.4). Without it they are right.
    """
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
    if signed:
        options["LP_TRANSFORMS_MODE"] = False
    return options


def _metadata(model: Any) -> dict[str, str]:
    """The file's `metadata_props`: OpenVINO keeps them among a model's runtime information, under `framework`."""
    if not model.has_rt_info("framework"):
        return {}
    return {name: str(item.value) for name, item in model.get_rt_info()["framework"].items()}


def _ports(items: Sequence[Any]) -> Iterator[Port]:
    for item in items:
        shape = item.partial_shape
        sides = () if shape.rank.is_dynamic else tuple(side.get_length() if side.is_static else None for side in shape)
        for name in item.get_names():  # one tensor may be two of the file's outputs
            yield Port(name, str(item.element_type.to_dtype()), sides)
