"""Parses INT8 files whose int8 constants TensorRT 8.6 may refuse, with their weights rewritten where it does."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from runtime.backends.tensorrt.library import TensorRT
from runtime.components import is_installed, load
from runtime.errors import MissingComponentError, ModelError

log = logging.getLogger(__name__)


def parse_network(trt: TensorRT, builder: Any, model: Path, precision: str) -> tuple[Any, Any, bool]:
    """Parses an ONNX file; one with int8 weights that the parser refuses is parsed again with `float_weights`.

    Args:
        trt: the library.
        builder: its `IBuilder`.
        model: the ONNX file.
        precision: that the file claims.

    Returns:
        The network; the parser, to be kept as long as the network; whether the weights were rewritten.

    Raises:
        ModelError: neither form can be read.
        MissingComponentError: the other form would have to be tried, but the onnx package is not installed.
    """
    network = trt.create_network(builder)
    try:
        return network, trt.parse_onnx(network, model), False
    except ModelError as error:
        if precision != "int8" or trt.is_typed:
            raise
        refused = error
    if not is_installed("onnx"):
        raise MissingComponentError(f"{refused}; with float weights it may be read: run `pip install onnx`, and try again")
    onnx = load("onnx")
    network = trt.create_network(builder)
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder) / model.name
        onnx.save(float_weights(onnx.load(str(model))), str(rewritten))
        try:
            parser = trt.parse_onnx(network, rewritten)
        except ModelError as error:
            log.debug("with float weights: %s", error)
            raise refused from error
    log.info("%s refuses the int8 weights; they are given as float32 with Quantize layers, which compute the same", trt.title)
    return network, parser, True


def float_weights(model: Any) -> Any:
    """Rewrites each int8 constant that a DequantizeLinear reads to a float32 one with a QuantizeLinear after it.

    The float value is scale times the int8 value, so that quantizing it gives the int8 value back.

    Args:
        model: an `onnx.ModelProto` with symmetric int8 weights; it is changed.

    Returns:
        The same model.
    """
    helper, arrays = load("onnx.helper"), load("onnx.numpy_helper")
    constants = {item.name: item for item in model.graph.initializer}
    nodes, done = [], set()
    for node in model.graph.node:
        weight = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None:
            name, quantized = weight.name, f"{node.input[0]}/from_float"
            if name not in done:  # several layers may share a weight
                done.add(name)
                axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
                value, scale = arrays.to_array(weight), arrays.to_array(constants[node.input[1]])
                shape = [-1 if side == axis else 1 for side in range(value.ndim)] if scale.ndim else []
                weight.CopyFrom(arrays.from_array(value * scale.reshape(shape), name))  # int8 times float32 is float32
                pair = helper.make_node(
                    "QuantizeLinear", list(node.input), [quantized], name=f"{name}/QuantizeLinear", axis=axis
                )
                nodes.append(pair)
            node.input[0] = quantized
        nodes.append(node)
    rewritten = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(rewritten)
    return model
