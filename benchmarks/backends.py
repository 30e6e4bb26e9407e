"""Times the backends of one ONNX file, and ONNX Runtime's session options, against ONNX Runtime's defaults.

The model is yolov3-asff-small at 416 pixels with random weights unless --engine names another.

Example: `python -m benchmarks.backends --batch 4`
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.models import settle
from benchmarks.timing import alternate
from export.onnx_export.export import parity_images, prepare
from export.onnx_export.tracer import write_onnx
from runtime import cli
from runtime.backends.open import open_backend
from runtime.backends.signature import INPUT_NAME
from runtime.components import load
from runtime.errors import MissingComponentError
from train.model import build_model
from train.recipes import recipe
from train.spec import model_spec

onnxruntime = load("onnxruntime")

_CLASSES = tuple(map(str, range(80)))
# Attributes of onnxruntime.SessionOptions, and its configuration entries.
_OPTIONS: dict[str, dict[str, Any]] = {
    "1 thread": {"intra_op_num_threads": 1},
    "2 threads": {"intra_op_num_threads": 2},
    "operators in parallel": {"execution_mode": onnxruntime.ExecutionMode.ORT_PARALLEL},
    "no memory arena": {"enable_cpu_mem_arena": False},
    "waiting threads sleep": {"session.intra_op.allow_spinning": "0"},
    "subnormals are zero": {"session.set_denormal_as_zero": "1"},
}
_BACKENDS = ("onnxruntime", "openvino", "openvino-bf16")


def make_model(folder: Path, size: int) -> Path:
    """Exports a small model with random weights, whose activations have the range of a trained model's."""
    config = recipe("yolov3-asff-small").replace(size=size)
    torch.manual_seed(0)
    model = settle(build_model(config.model, len(_CLASSES), config.loss))
    write_onnx(model.eval(), model_spec(config, _CLASSES), folder / "model.onnx")
    return folder / "model.onnx"


def measure(engine: Path, batch: int, repeats: int) -> dict[str, float]:
    """Times each way in turn; returns median milliseconds a batch."""
    ways: dict[str, Callable[[], Any]] = {}
    with open_backend(engine, "onnxruntime") as backend:
        images = prepare(parity_images(backend.spec, None, batch), backend.spec)
    for name in _BACKENDS:
        try:
            ways[name] = _bound(open_backend(engine, name).infer, images)
        except MissingComponentError as error:
            print(f"without {name}: {error}")
    for name, options in _OPTIONS.items():
        ways[f"onnxruntime, {name}"] = _session(engine, options, images)
    return alternate(ways, repeats)


def _bound(infer: Callable[[NDArray[np.float32]], Any], images: NDArray[np.float32]) -> Callable[[], Any]:
    return lambda: infer(images)


def _session(engine: Path, settings: dict[str, Any], images: NDArray[np.float32]) -> Callable[[], Any]:
    options = onnxruntime.SessionOptions()
    for name, value in settings.items():
        if name.startswith("session."):
            options.add_session_config_entry(name, value)
        else:
            setattr(options, name, value)
    session = onnxruntime.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {INPUT_NAME: images})


def report(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        times = measure(options.engine or make_model(Path(folder), options.size), options.batch, options.repeats)
    if options.json:
        print(json.dumps(times, indent=1))
        return
    for name, value in times.items():
        print(f"{name:36} {value:8.1f} ms {times['onnxruntime'] / value:6.2f} x")


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser("benchmarks.backends", "Time the backends of one ONNX file.", "python -m benchmarks.backends --batch 4")
    parser.add_argument("--engine", type=Path, help="a model (default: yolov3-asff-small, random weights)")
    parser.add_argument("--size", type=cli.image_side, default=416, help="of the random model (default: 416)")
    parser.add_argument("--batch", type=cli.positive, default=1, help="default: 1")
    parser.add_argument("--repeats", type=cli.positive, default=25, help="default: 25")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    report(parser.parse_args(arguments))
    return 0


if __name__ == "__main__":
    cli.run(main)
