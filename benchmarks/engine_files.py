"""ONNX files of one detector in every precision, to build engines from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from calibration.activations import ActivationRunner
from calibration.graph import Graph
from calibration.placement import place
from calibration.quantize import quantize
from calibration.ranges import Range
from export.onnx_export.tracer import write_onnx
from runtime.ops.preprocess import as_input
from runtime.spec import ModelSpec
from train.model import DetectorModel


def write_int8(fp32: Path, spec: ModelSpec, path: Path) -> None:
    """Quantizes an FP32 file for TensorRT, with the ranges of one batch of noise: good enough to build an engine."""
    model = onnx.load(str(fp32))
    tensors = list(place(Graph(model), "tensorrt").tensors)
    noise = as_input(np.random.default_rng(0).integers(0, 256, (*spec.input_size, 3), dtype=np.uint8), spec)[None]
    with ActivationRunner(fp32, tensors) as runner:
        ranges = {name: Range(min(float(x.min()), 0.0), max(float(x.max()), 0.0)) for name, x in runner.run(noise).items()}
    quantized = quantize(model, ranges, "tensorrt", rest="fp16")
    del quantized.metadata_props[:]
    helper.set_model_props(quantized, spec.replace(precision="int8").to_metadata())
    onnx.save(quantized, str(path))


def write_precisions(model: DetectorModel, spec: ModelSpec, folder: Path) -> dict[str, Path]:
    """Writes FP32, FP16 and INT8 files of one detector; returns their paths by precision."""
    files = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "fp16", "int8")}
    write_onnx(model, spec, files["fp32"])
    write_onnx(model, spec.replace(precision="fp16"), files["fp16"])
    write_int8(files["fp32"], spec, files["int8"])
    return files
