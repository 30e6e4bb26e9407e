"""Scaled channels: the model computes the same, channels grow as far as they may, and every later file still tells by what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.activations import ActivationRunner
from calibration.equalize import activation_factors, equalize, layer_factors
from calibration.graph import Graph
from calibration.placement import TARGETS, place
from calibration.quantize import quantize
from calibration.ranges import Range
from runtime.errors import ModelError
from tests.support.small_models import noise

CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"backbone": "mobilenetv2"},
    {"fusion": "none", "spp": False},
    {"fusion": "concat", "guided": False, "adaption": False},
    {"detector": "retinanet"},
)
ROUNDING = 1e-4  # of float32, over all layers; one step too many would be 4e-2


def activations(path: Path) -> dict[str, NDArray[np.float32]]:
    images = noise(0, side=onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim[2].dim_value)
    with ActivationRunner(path) as runner:
        return {"images": images, **runner.run(images)}


def peaks_of(values: dict[str, NDArray[np.float32]], names: Any) -> dict[str, NDArray[np.float64]]:
    return {name: np.abs(values[name]).max(axis=(0, 2, 3)).astype(np.float64) for name in names}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_model_computes_the_same(export: Callable[..., Path], changes: dict[str, Any], target: str, tmp_path: Path) -> None:
    path, scaled = export(**changes), tmp_path / "scaled.onnx"
    model = onnx.load(str(path))
    before, tensors = activations(path), place(Graph(model), target).tensors
    result = equalize(model, peaks_of(before, tensors))
    onnx.save(result, str(scaled))
    after, factors = activations(scaled), activation_factors(result)
    assert before.keys() == after.keys() and set(factors) & set(tensors)
    for name, value in before.items():
        expected = value * factors[name].reshape(-1, 1, 1) if name in factors else value
        assert np.abs(after[name] - expected).max() <= ROUNDING * np.abs(expected).max(), name
    for name in tensors:
        old, new = (np.abs(values[name]).max(axis=(0, 2, 3)) for values in (before, after))
        assert new.max() <= old.max() * (1 + ROUNDING) and (new >= old - ROUNDING * old.max()).all()


@pytest.mark.parametrize("target", TARGETS)
def test_int8_files_tell_the_same_factors(tiny_model: Path, target: str) -> None:
    model, values = onnx.load(str(tiny_model)), activations(tiny_model)
    tensors = place(Graph(model), target).tensors
    scaled = equalize(model, peaks_of(values, tensors))
    ranges = dict.fromkeys(tensors, Range(-1.0, 1.0))
    made = quantize(scaled, ranges, target, fp16=place(Graph(model), target).layers[:2], rest="fp16")
    layers, again = layer_factors(scaled), layer_factors(made)
    assert layers.keys() == again.keys()
    for name, factors in layers.items():
        assert all(np.array_equal(one, other) for one, other in zip(factors, again[name]))
    expected, found = activation_factors(scaled), activation_factors(made)
    assert all(np.array_equal(found[name], factors) for name, factors in expected.items())
    assert not layer_factors(model) and not activation_factors(model)


@pytest.mark.parametrize(
    "value", ["", "[]", "3", '{"a": 3}', '{"a": [-1]}', '{"a": [1000000]}', '{"a": ["x"]}', '{"a": [1]}', "{" * 10**5]
)
def test_damaged_notes_are_refused(tiny_model: Path, value: str) -> None:
    model = onnx.load(str(tiny_model))
    model.metadata_props.add(key="equalization", value=value)
    for read in (layer_factors, activation_factors):
        with pytest.raises(ModelError, match="calibrate again"):
            read(model)


# --- small graphs, whose factors are known


def conv(
    source: str, result: str, outputs: int, inputs: int, group: int = 1, weight: str = "", bias: str = ""
) -> onnx.NodeProto:
    constants = weight or f"{result}.weight", bias or f"{result}.bias"
    node = helper.make_node("Conv", [source, *constants], [result], name=result, group=group)
    node.doc_string = f"{outputs} {inputs // group}"
    return node


def steps_of(nodes: list[onnx.NodeProto], peaks: dict[str, list[float]]) -> dict[str, list[float]]:
    """Builds a graph from `x` to `y`, equalizes it, checks that it computes the same; returns the steps of its activations."""
    rng, constants = np.random.default_rng(0), {}
    for node in nodes:
        if node.op_type == "Conv":
            outputs, inputs = map(int, node.doc_string.split())
            for name, shape in zip(node.input[1:], ((outputs, inputs, 1, 1), (outputs,))):
                constants.setdefault(name, rng.normal(size=shape).astype(np.float32))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    result = equalize(model, {name: np.array(value) for name, value in peaks.items()})
    images = rng.normal(size=(1, 2, 3, 3)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(item.SerializeToString()).run(None, {"x": images})[0] for item in (model, result)
    )
    assert np.allclose(before, after, rtol=1e-5, atol=1e-5)
    return {name: (np.log2(values) * 16).round(6).tolist() for name, values in activation_factors(result).items()}


def node(kind: str, inputs: list[str], result: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [result], name=result, **attributes)


A, LEAKY_A, END = conv("x", "a", 2, 2), node("LeakyRelu", ["a"], "r"), conv("r", "y", 2, 2)


@pytest.mark.parametrize(
    ("nodes", "peaks", "expected"),
    [
        ([A, LEAKY_A, END], {"r": [8, 4]}, {"a": [0, 16], "r": [0, 16]}),
        ([A, LEAKY_A, END], {"r": [8, 8 / 1.5]}, {"a": [0, 9], "r": [0, 9]}),  # log2(1.5) is 9.36 sixteenths
        ([A, LEAKY_A, END], {"r": [8, 0.1]}, {"a": [0, 32], "r": [0, 32]}),  # four times at most
        ([A, LEAKY_A, END], {"r": [8, 0]}, {"a": [0, 32], "r": [0, 32]}),
        ([A, LEAKY_A, END], {"r": [0, 0]}, {}),
        ([A, LEAKY_A, END], {}, {}),  # nothing is quantized
        ([A, LEAKY_A, END], {"x": [8, 4], "y": [8, 4]}, {}),  # what comes in and goes out stays
        ([A, LEAKY_A, END], {"a": [8, 2], "r": [8, 4]}, {"a": [0, 16], "r": [0, 16]}),  # the least that is asked for
        ([A, node("Clip", ["a"], "r"), END], {"a": [8, 4], "r": [8, 4]}, {}),
        ([A, node("Sigmoid", ["a"], "r"), END], {"r": [8, 4]}, {}),
        ([A, node("Mul", ["a", "a"], "r"), END], {"r": [8, 4]}, {}),
        ([A, node("Mul", ["a", "x"], "r"), END], {"r": [8, 4]}, {"a": [0, 16], "r": [0, 16]}),
        ([A, node("Add", ["a", "x"], "r"), END], {"r": [8, 4]}, {}),
        (
            [A, conv("a", "b", 2, 2), node("Add", ["a", "b"], "r"), END],
            {"a": [8, 4], "b": [2, 8], "r": [8, 1]},
            {},  # the sum's channels and both that are added agree on the least: 0 of a, 0 of b
        ),
        (
            [A, conv("a", "b", 2, 2), node("Add", ["a", "b"], "r"), END],
            {"a": [8, 4], "r": [8, 1]},
            {"a": [0, 16], "b": [0, 16], "r": [0, 16]},
        ),
        (
            [A, conv("x", "b", 1, 2), node("Concat", ["b", "a"], "r", axis=1), conv("r", "y", 1, 3)],
            {"r": [2, 8, 4]},
            {"b": [32], "a": [0, 16], "r": [32, 0, 16]},
        ),
        ([A, node("Concat", ["a", "a"], "r", axis=2), END], {"r": [8, 4]}, {}),
        ([A, conv("a", "r", 2, 2, group=2), END], {"a": [8, 4], "r": [4, 8]}, {"a": [0, 16], "r": [16, 0]}),
        ([conv("x", "a", 4, 2), conv("a", "r", 4, 4, group=2), conv("r", "y", 2, 4)], {"a": [8, 8, 8, 4]}, {}),
        ([A, conv("a", "r", 2, 2, weight="y.weight"), END], {"a": [8, 4]}, {}),  # one weight of two layers
        ([A, conv("a", "r", 2, 2, bias="y.bias"), END], {"a": [8, 4], "r": [8, 4]}, {"a": [0, 16]}),
    ],
)
def test_which_channels_grow(
    nodes: list[onnx.NodeProto], peaks: dict[str, list[float]], expected: dict[str, list[float]]
) -> None:
    assert steps_of(nodes, peaks) == expected
