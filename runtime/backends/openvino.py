"""OpenVINO backend for CPUs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.backends.onnx_base import OnnxBackend, telling_line
from runtime.backends.signature import INPUT_NAME, Port
from runtime.components import load
from runtime.errors import InputError, MissingComponentError, ModelError
from runtime.files import PathLike

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names by the choices of `precision`."""


class OpenVinoBackend(OnnxBackend):
    """Runs an exported ONNX file on the CPU with OpenVINO. May be used by several threads at once.

    By default OpenVINO computes a float32 file in bfloat16 where the CPU has it, with errors of 2 to 6 % of the output's
    scale; here bfloat16 has to be asked for. INT8 files run in 8 bits only if their activations are unsigned, as
    `python -m calibration --target cpu` makes them.

    Args:
        path: of the file.
        precision: of its floating-point operators: `float32`, or `bfloat16` for speed.
        threads: of one run; all cores by default.

    Raises:
        InputError: no such precision.
        MissingComponentError: openvino is not installed, or the CPU has no bfloat16.
        ModelError: not an ONNX file, damaged, without a spec in its metadata, or not as its spec says.
    """

    def __init__(self, path: PathLike, precision: str = "float32", threads: Optional[int] = None) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        openvino = load("openvino")
        core = openvino.Core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise MissingComponentError("this CPU does not compute in bfloat16; use float32 with --backend openvino")
        try:
            model = _read(path)
            signed = _quantizes_to_signed(model)
            compiled = core.compile_model(model, "CPU", _options(precision, signed, threads))
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
    """Pool of inference requests: each serves one thread at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: deque[Any] = deque()

    def run(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[np.float32]]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        # The input is not copied; the outputs are, since the next run overwrites them.
        outputs = request.infer({INPUT_NAME: images}, share_inputs=True, share_outputs=True)
        found = [np.array(outputs[name]) for name in names]
        self._idle.append(request)  # not reached by one that failed
        return found


def _read(path: PathLike) -> Any:
    """Reads a file with the ONNX frontend alone: `Core.read_model` tries every format, each with its own complaints."""
    frontend = load("openvino.frontend").FrontEndManager().load_by_framework("onnx")
    return frontend.convert(frontend.load(str(path)))


def _quantizes_to_signed(model: Any) -> bool:
    """Returns whether activations are quantized to int8 rather than uint8."""
    return any(
        item.get_type_name() == "Convert"
        and item.get_output_element_type(0).to_dtype() == np.int8
        and item.input_value(0).get_node().get_type_name() == "FakeQuantize"
        for item in model.get_ops()
    )


def _options(precision: str, signed: bool, threads: Optional[int]) -> dict[str, Any]:
    """Returns the options of compilation, accuracy first.

    With signed activations, OpenVINO's 8-bit arithmetic gives wrong results: outputs were 20 to 30 % off in 2025.0 and
    2026.4. So such a file runs in `precision`, with correct results.
    """
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
    if signed:
        options["LP_TRANSFORMS_MODE"] = False
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return options


def _metadata(model: Any) -> dict[str, str]:
    """Returns the file's `metadata_props`, which OpenVINO keeps in a model's runtime information under `framework`."""
    if not model.has_rt_info("framework"):
        return {}
    return {name: str(item.value) for name, item in model.get_rt_info()["framework"].items()}


def _ports(items: Sequence[Any]) -> Iterator[Port]:
    for item in items:
        shape = item.partial_shape
        sides = () if shape.rank.is_dynamic else tuple(side.get_length() if side.is_static else None for side in shape)
        for name in item.get_names():  # one tensor may be two of the file's outputs
            yield Port(name, str(item.element_type.to_dtype()), sides)
