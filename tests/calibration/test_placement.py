"""Places of the Q/DQ pairs in every variant, judged by the names of the modules rather than by the rules under test."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.graph import Graph
from calibration.placement import TARGETS, place
from calibration.quantize import quantize
from calibration.ranges import Range

VARIANTS: list[dict[str, object]] = [
    {"backbone": backbone, "fusion": fusion}
    for backbone in ("darknet53", "mobilenetv2")
    for fusion in ("none", "sum", "concat", "asff")
]
VARIANTS.append({"rfb": True, "compress": 8})
VARIANTS.append({"guided": False, "adaption": False, "fusion": "none", "spp": False})
VARIANTS.append({"detector": "retinanet", "fusion": "asff"})
# By the modules' own names: heads' guide and predict (the raw outputs; RetinaNet: the last of either tower, shared by its five
# levels), adaption (the sampling), the fusion's softmax.
RAW = r"/heads\.\d/(guide|predict|adapt/offsets)/Conv|/head/(boxes/boxes|classes/classes)\.8(_\d)?/Conv"
STAYS_FLOAT = {
    "cpu": re.compile(RAW + r"|/fusion\.\d/weights/weigh/Conv"),
    "tensorrt": re.compile(RAW + r"|/fusion\.\d/weights/weigh/Conv|/heads\.\d/adapt/conv/Conv"),
}
ACTIVATIONS = ("LeakyRelu", "Relu", "Clip")


def by_name(variant: dict[str, object]) -> str:
    return "-".join(str(value) for value in variant.values())


@pytest.fixture(params=VARIANTS, ids=by_name)
def path(request: pytest.FixtureRequest, export: Callable[..., Path]) -> Path:
    return export(**request.param)


def all_ranges(graph: Graph, target: str) -> dict[str, Range]:
    return {name: Range(-1.0, 1.0 + index) for index, name in enumerate(place(graph, target).tensors)}


@pytest.mark.parametrize("target", TARGETS)
def test_the_float_layers_are_those_the_docstring_names(path: Path, target: str) -> None:
    graph = Graph(onnx.load(path))
    convs = [node.name for node in graph.nodes if node.op_type == "Conv"]
    expected = [name for name in convs if STAYS_FLOAT[target].fullmatch(name)]
    placement = place(graph, target)
    assert list(placement.float_layers) == expected
    assert list(placement.layers) == [name for name in convs if name not in expected]
    assert len(expected) >= 3 and len(placement.layers) > 20
    assert len(place(graph, target, without=placement.layers[:2]).layers) == len(placement.layers) - 2


def test_for_tensorrt_pairs_sit_before_convolutions_additions_and_concatenations(path: Path) -> None:
    source = onnx.load(path)
    model = quantize(source, all_ranges(Graph(source), "tensorrt"), "tensorrt")
    graph, constants = Graph(model), {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    float_layers = {
        node.name for node in graph.nodes if node.op_type == "Conv" and STAYS_FLOAT["tensorrt"].fullmatch(node.name)
    }
    pairs = 0
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            maker, (dequantize,) = graph.maker(node.input[0]), graph.takers(node.output[0])
            assert dequantize.op_type == "DequantizeLinear" and list(dequantize.input[1:]) == list(node.input[1:])
            takers = graph.takers(dequantize.output[0])
            assert takers and {taker.op_type for taker in takers} <= {"Conv", "Add", "Concat"}
            assert not {taker.name for taker in takers} & float_layers
            if maker is not None and maker.op_type == "Conv":  # its activation would have to follow at once
                assert not any(taker.op_type in ACTIVATIONS for taker in takers)
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8 and zero == 0 and constants[node.input[1]].dtype == np.float32
            pairs += 1
        if node.op_type in ACTIVATIONS:
            assert graph.maker(node.input[0]).op_type in ("Conv", "Add")  # type: ignore[union-attr]
        if node.op_type == "Concat" and any(_is_dequantized(graph, name) for name in node.input):
            scales = [graph.maker(name).input[1] for name in node.input]  # type: ignore[union-attr]
            assert len({float(constants[name]) for name in scales}) == 1
        if node.op_type == "Conv" and node.name not in float_layers:
            assert _is_dequantized(graph, node.input[0])
            _check_weight(graph, constants, node)
    assert pairs >= len(place(Graph(source), "tensorrt").layers) // 2


def _is_dequantized(graph: Graph, tensor: str) -> bool:
    maker = graph.maker(tensor)
    return maker is not None and maker.op_type == "DequantizeLinear"


def _check_weight(graph: Graph, constants: dict[str, np.ndarray], conv: onnx.NodeProto) -> None:
    dequantize = graph.maker(conv.input[1])
    assert dequantize is not None and dequantize.op_type == "DequantizeLinear"
    assert {a.name: a.i for a in dequantize.attribute} == {"axis": 0}
    weight, scale, zero = (constants[name] for name in dequantize.input)
    assert weight.dtype == np.int8 and zero.dtype == np.int8 and not zero.any()
    assert scale.shape == zero.shape == (len(weight),)
    assert np.abs(weight.astype(int)).max() == 127
    bias = graph.constant(conv.input[2])
    assert bias is not None and bias.dtype == np.float32


def test_for_tensorrt_every_residual_addition_is_quantized_on_both_sides(export: Callable[..., Path]) -> None:
    source = onnx.load(export())
    graph = Graph(quantize(source, all_ranges(Graph(source), "tensorrt"), "tensorrt"))
    residual = [node for node in graph.nodes if node.op_type == "Add" and node.name.startswith("/backbone")]
    pyramid = [node for node in graph.nodes if node.op_type == "Concat" and node.name.startswith("/neck")]
    assert len(residual) >= 5 and len(pyramid) == 3
    for node in residual + pyramid:
        assert all(_is_dequantized(graph, name) for name in node.input), node.name


def test_for_cpus_results_are_quantized_too(path: Path) -> None:
    source = onnx.load(path)
    model = quantize(source, all_ranges(Graph(source), "cpu"), "cpu")
    graph, constants = Graph(model), {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in graph.nodes:
        if node.op_type == "Conv" and not STAYS_FLOAT["cpu"].fullmatch(node.name):
            assert [taker.op_type for taker in graph.takers(node.output[0])] == ["QuantizeLinear"]
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == np.uint8


def test_tensors_come_in_graph_order(tiny_model: Path) -> None:
    graph = Graph(onnx.load(tiny_model))
    for target in TARGETS:
        tensors = list(place(graph, target).tensors)
        assert tensors[0] == "images"
        first_use = [min(i for i, n in enumerate(graph.nodes) if t in (*n.input, *n.output)) for t in tensors]
        assert first_use == sorted(first_use), target
