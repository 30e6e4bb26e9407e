"""Reads from an INT8 ONNX file what is quantized, and with which scales, for training in PyTorch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto

from calibration.equalize import layer_factors
from calibration.graph import Graph
from calibration.quantize import quantized_activation
from runtime.errors import ModelError
from train.qat.fake_quant import OPERATORS, unnumbered
from train.qat.plan import QuantPlan, Scale

_OPERATORS = frozenset(OPERATORS.values())


def read_quant_plan(path: Path) -> QuantPlan:
    """Reads the Q/DQ pairs of a file that `python -m calibration` wrote.

    Raises:
        ModelError: nothing in it is quantized, or a layer is that cannot be trained with.
    """
    model = onnx.load(str(path))
    graph = Graph(model)
    inputs: dict[str, dict[int, Scale]] = defaultdict(dict)
    outputs: dict[str, Scale] = {}
    scales: dict[str, Scale] = {}
    weights: dict[str, int] = {}
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear":
            continue
        source = graph.maker(node.input[0])
        readers = list(_readers(graph, node.output[0]))
        if source is None:
            stored = graph.constant(node.input[0])
            assert stored is not None
            weights.update((reader.name, int(np.abs(stored.astype(np.int32)).max())) for reader, _ in readers)
            continue
        scale = scales[quantized_activation(source)] = _scale(graph, source)
        for reader, index in readers:
            if reader.op_type in _OPERATORS:
                inputs[reader.name][index] = scale
            else:
                outputs[_only_maker(graph, source, reader)] = scale
    if not inputs:
        raise ModelError(f"{path}: nothing in it is quantized; expected a file that python -m calibration wrote")
    prefixes = {unnumbered(name) for name in (*inputs, *outputs)}
    names = {node.name for node in graph.nodes if node.op_type in _OPERATORS}
    layers = frozenset(name for name in names if unnumbered(name) in prefixes)
    return QuantPlan(dict(inputs), outputs, scales, weights, layers, layer_factors(model))


def _scale(graph: Graph, quantize: NodeProto) -> Scale:
    scale, zero_point = (graph.constant(name) for name in quantize.input[1:3])
    assert scale is not None
    assert zero_point is not None
    limits = np.iinfo(str(zero_point.dtype))
    return Scale(float(scale), int(zero_point), limits.min, limits.max)


def _readers(graph: Graph, tensor: str) -> Iterator[tuple[NodeProto, int]]:
    """Yields the nodes that read a tensor, and the number of the input by which they do; casts are passed."""
    for node in graph.takers(tensor):
        if node.op_type == "Cast":
            yield from _readers(graph, node.output[0])
        else:
            yield from ((node, index) for index, name in enumerate(node.input) if name == tensor)


def _only_maker(graph: Graph, quantize: NodeProto, reader: NodeProto) -> str:
    """Returns the layer that makes a quantized tensor, all of whose readers read it quantized."""
    tensor = quantize.input[0]
    maker = graph.maker(tensor)
    if maker is None or maker.op_type not in _OPERATORS or len(graph.takers(tensor)) > 1:
        raise ModelError(f"{reader.name} reads a quantized activation, which training cannot imitate")
    return maker.name
