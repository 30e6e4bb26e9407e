"""ONNX files to build engines from: minimal ones that keep the contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from runtime.spec import ModelSpec

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
