"""Times an INT8 file against the FP32 file it was made from, both in ONNX Runtime on this CPU.

The model is the full YOLOv3+ASFF at 416 pixels with random weights unless --engine names another. OpenVINO is timed too if it
is installed.

Example: `python -m benchmarks.int8 --repeats 5`
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.detector import make_model
from benchmarks.timing import alternate
from calibration.activations import ActivationRunner
from calibration.graph import Graph
from calibration.placement import TARGETS, place
from calibration.quantize import quantize
from calibration.ranges import Range
from export.onnx_export.export import parity_images, prepare
from runtime import cli
from runtime.backends.ort import OrtBackend


def make_int8(source: Path, output: Path, target: str, images: NDArray[np.float32]) -> None:
    """Quantizes with the ranges of one batch, which is enough to measure speed."""
    model = onnx.load(str(source))
    with ActivationRunner(source, list(place(Graph(model), target).tensors)) as runner:
        values = runner.run(images)
    ranges = {name: Range(min(float(value.min()), 0), max(float(value.max()), 0)) for name, value in values.items()}
    onnx.save(quantize(model, ranges, target), str(output))


def measure(source: Path, target: str, repeats: int) -> dict[str, float]:
    """Times each way in turn; returns median milliseconds an image."""
    with tempfile.TemporaryDirectory() as folder, OrtBackend(source) as before:
        images = prepare(parity_images(before.spec, None, 1), before.spec)
        small = Path(folder) / "int8.onnx"
        make_int8(source, small, target, images)
        with OrtBackend(small) as after:
            ways: dict[str, Callable[[], Any]] = {
                "ONNX Runtime FP32": lambda: before.infer(images),
                "ONNX Runtime INT8": lambda: after.infer(images),
            }
            if importlib.util.find_spec("openvino"):
                ways["OpenVINO INT8"] = _openvino(small, images)
            return alternate(ways, repeats)


def _openvino(path: Path, images: NDArray[np.float32]) -> Callable[[], Any]:
    core = importlib.import_module("openvino").Core()
    compiled = core.compile_model(str(path), "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
    return lambda: compiled(images)


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser("benchmarks.int8", "Time INT8 against FP32 on this CPU.", "python -m benchmarks.int8 --repeats 5")
    parser.add_argument("--engine", type=Path, help="an FP32 model (default: full yolov3-asff, random weights)")
    parser.add_argument("--size", type=cli.image_side, default=416, help="of the random model (default: 416)")
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="whose placement to take (default: cpu)")
    parser.add_argument("--repeats", type=cli.positive, default=5, help="default: 5")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    report(parser.parse_args(arguments))
    return 0


def report(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        times = measure(options.engine or make_model(Path(folder), options.size), options.target, options.repeats)
    if options.json:
        print(json.dumps(times, indent=1))
        return
    reference = times["ONNX Runtime FP32"]
    for name, value in times.items():
        print(f"{name:18} {value:7.1f} ms  {reference / value:5.2f} x")


if __name__ == "__main__":
    cli.run(main)
