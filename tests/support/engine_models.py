"""ONNX files to build engines from: a minimal one that keeps the contract, and small detectors in every precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calibration.activations import ActivationRunner
from calibration.graph import Graph
from calibration.placement import place
from calibration.quantize import quantize
from calibration.ranges import Range
from export.onnx_export.tracer import write_onnx
from runtime.ops.preprocess import as_input
from runtime.spec import ModelSpec
from train.model import DetectorModel

MINI_SPEC = ModelSpec("mini", ("cat", "dog"), (64, 64), (((8.0, 8.0), (16.0, 16.0)),) * 3)


def mini(
    path: Path,
    precision: str = "fp32",
    *,
    claim: str | None = None,
    batch: int | str = "N",
    described: bool = True,
    extra: Sequence[NodeProto] = (),
) -> Path:
    """Write one 1x1 convolution per output, in `precision`, to a file whose metadata says `claim`.

    Args:
        extra: nodes to append; their input may be `p5`, and what the last one gives, float32, becomes an output.
    """
    spec = MINI_SPEC.replace(precision=claim or precision)
    rng = np.random.default_rng(0)
    nodes, weights = [*_prepare(precision)], [numpy_helper.from_array(np.float32(0.05), "scale")]
    weights.append(numpy_helper.from_array(np.int8(0), "zero"))
    outputs = []
    for level, (name, stride) in enumerate(zip(spec.map_names, spec.strides)):
        shape = spec.map_shape(level)
        kernel = rng.normal(size=(shape[0], 3, 1, 1)).astype(np.float16 if precision == "fp16" else np.float32)
        weight = f"{name}_weight"
        if precision == "int8":
            kernel = np.clip(np.rint(kernel * 30), -127, 127).astype(np.int8)
            nodes.append(helper.make_node("DequantizeLinear", [weight, "scale", "zero"], [f"{weight}_float"]))
        weights.append(numpy_helper.from_array(kernel, weight))
        taken = f"{weight}_float" if precision == "int8" else weight
        nodes.append(helper.make_node("Conv", ["x", taken], [f"{name}_raw"], f"conv_{name}", strides=[stride, stride]))
        nodes.append(helper.make_node("Cast", [f"{name}_raw"], [name], to=TensorProto.FLOAT))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape]))
    nodes.extend(extra)
    if extra:
        outputs.append(helper.make_tensor_value_info(extra[-1].output[0], TensorProto.FLOAT, None))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, *spec.input_size])
    graph = helper.make_graph(nodes, "mini", [images], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19 if extra else 17)], ir_version=8)
    if described:
        helper.set_model_props(model, spec.to_metadata())
    onnx.save(model, str(path))
    return path


def _prepare(precision: str) -> Iterator[NodeProto]:
    """From `images` to `x`, what the convolutions take."""
    if precision == "int8":
        yield helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"])
        yield helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"])
    else:
        yield helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT)


def write_int8(fp32: Path, spec: ModelSpec, path: Path) -> None:
    """An FP32 file quantized for TensorRT, with the ranges of one batch of noise: good enough to build an engine."""
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
    """FP32, FP16 and INT8 files of one detector, by precision."""
    files = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "fp16", "int8")}
    write_onnx(model, spec, files["fp32"])
    write_onnx(model, spec.replace(precision="fp16"), files["fp16"])
    write_int8(files["fp32"], spec, files["int8"])
    return files
