"""Quantized convolutions against numpy arithmetic; FP16 layers; whole models that stay close to the float ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.activations import ActivationRunner
from calibration.graph import Graph
from calibration.placement import TARGETS, place
from calibration.quantize import WEIGHT_MAX, quantize, quantize_weight
from calibration.ranges import Range
from runtime.backends.ort import OrtBackend
from tests.support.quality import signal_to_noise
from tests.support.small_models import noise

FindRanges = Callable[[Path, str], dict[str, Range]]


def infer(model: onnx.ModelProto, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[NDArray[np.float32]] = session.run(None, {"images": images})
    return found


@settings(max_examples=100)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3)), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(sorted(WEIGHT_MAX.values())),
)
def test_weights_are_off_by_half_a_step_at_most(weight: NDArray[np.float32], largest: int) -> None:
    quantized, scale = quantize_weight(weight, largest)
    assert quantized.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (len(weight),)
    assert np.abs(quantized.astype(int)).max() <= largest and (scale > 0).all()
    error = np.abs(quantized * scale[:, None].astype(np.float64) - weight)
    assert (error <= scale[:, None] * 0.5001).all()


@pytest.mark.parametrize("dead", [0.0, 1e-30, -1e-13])
def test_a_dead_channel_keeps_the_bias_within_int32(dead: float) -> None:
    weight = np.array([[dead, 0.0], [0.5, -1.0]], np.float32)
    quantized, scale = quantize_weight(weight, 127)
    assert scale.tolist() == [1.0, np.float32(1 / 127)] and quantized.tolist() == [[0, 0], [64, -127]]
    assert abs(10.0 / (scale * 0.01)).max() < 2**31  # a bias of 10 in units of the two scales


def by_hand(x: NDArray[Any], scale: float, zero: int, low: int, high: int) -> NDArray[np.float64]:
    """A value as a pair of Q and DQ returns it."""
    return scale * (np.clip(np.rint(x / scale) + zero, low, high) - zero)


@pytest.mark.parametrize("target", TARGETS)
def test_one_convolution_by_hand(target: str) -> None:
    rng = np.random.default_rng(0)
    first, last = (rng.normal(size=(4, channels, 1, 1)).astype(np.float32) for channels in (3, 4))
    bias = rng.normal(size=4).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "first", "bias"], ["middle"], name="layer"),
        helper.make_node("Conv", ["middle", "last"], ["out"], name="head"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, c, 8, 8]) for n, c in (("images", 3), ("out", 4))]
    constants = [numpy_helper.from_array(v, n) for n, v in (("first", first), ("last", last), ("bias", bias))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    ranges = {"images": Range(-1.5, 2.0), "middle": Range(-3.0, 5.0)}
    result = quantize(model, ranges, target)
    x = noise(1, side=8)  # some of it beyond the range, so that clipping is seen

    def conv(w: NDArray[Any], value: NDArray[Any]) -> NDArray[Any]:
        return np.einsum("oi,nihw->nohw", w[:, :, 0, 0], value)

    step = np.abs(first).max(axis=(1, 2, 3), keepdims=True) / WEIGHT_MAX[target]
    weight = np.rint(first / step) * step
    if target == "tensorrt":
        middle = conv(weight, by_hand(x, 2.0 / 127, 0, -128, 127)) + bias[:, None, None]
    else:
        taken = by_hand(x, 3.5 / 255, round(1.5 / 3.5 * 255), 0, 255)
        middle = conv(weight, taken) + bias[:, None, None]
        middle = by_hand(middle, 8.0 / 255, round(3.0 / 8.0 * 255), 0, 255)
    expected = conv(last, middle)
    session = onnxruntime.SessionOptions()
    session.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(result.SerializeToString(), session, providers=["CPUExecutionProvider"])
    found = plain.run(None, {"images": x})[0]
    # A result on the edge between two steps may fall to either side.
    close = np.isclose(found, expected, rtol=1e-4, atol=1e-4)
    assert close.mean() > 0.98
    assert np.abs(found - expected).max() < 8.0 / 255 * np.abs(last).sum(axis=1).max()
    fused = infer(result, x)[0]  # as ONNX Runtime's own 8-bit kernels compute it
    assert signal_to_noise([[expected.astype(np.float32)]], [[fused]]) > 35


def test_no_cpu_saturates() -> None:
    """The largest products there are, of one sign: kernels that add pairs of them in 16 bits must not clip.

    It fails with weights of 127 on x86 CPUs that have AVX2 and no VNNI; elsewhere it holds either way.
    """
    weight = np.full((8, 8, 3, 3), -1, np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["middle"], name="layer"),
        helper.make_node("Conv", ["middle", "last"], ["out"], name="head"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, side, side]) for n, side in (("images", 8), ("out", 6))]
    last = np.eye(8, dtype=np.float32)[..., None, None]
    constants = [numpy_helper.from_array(v, n) for n, v in (("weight", weight), ("last", last))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    result = quantize(model, {"images": Range(0.0, 1.0), "middle": Range(-72.0, 0.0)}, "cpu")
    found = infer(result, np.ones((1, 8, 8, 8), np.float32))[0]
    np.testing.assert_allclose(found, -72, atol=72 / 255)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "variant", [{}, {"backbone": "mobilenetv2", "fusion": "concat"}, {"rfb": True, "compress": 8}, {"fusion": "sum"}], ids=str
)
def test_whole_models_stay_close(
    variant: dict[str, object], target: str, export: Callable[..., Path], ranges_of: FindRanges, tmp_path: Path
) -> None:
    path = export(**variant)
    model = quantize(onnx.load(path), ranges_of(path, target), target)
    onnx.checker.check_model(model, full_check=True)
    with OrtBackend(path) as before:
        reference = before.infer(noise(0))
    assert signal_to_noise([reference], [infer(model, noise(0))]) > 8
    twice = quantize(onnx.load(path), ranges_of(path, target), target)
    assert twice.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("target", TARGETS)
def test_fp16_layers_run_in_fp16_and_their_neighbors_stay_right(
    target: str, tiny_model: Path, ranges_of: FindRanges, tmp_path: Path
) -> None:
    source, ranges = onnx.load(tiny_model), ranges_of(tiny_model, target)
    graph = Graph(source)
    residual = next(node for node in graph.nodes if node.op_type == "Add" and node.name.startswith("/backbone"))
    into_concat = next(name for name in place(graph, target).layers if name.startswith("/neck/to_p4"))
    fp16 = ["/backbone/stem/conv/Conv", into_concat]
    for name in residual.input:
        maker = graph.maker(name)
        while maker is not None and maker.op_type != "Conv":
            maker = graph.maker(maker.input[0])
        assert maker is not None
        fp16.append(maker.name)
    fp16 = list(dict.fromkeys(fp16))
    model = quantize(source, ranges, target, fp16=fp16)
    onnx.checker.check_model(model, full_check=True)
    made = Graph(model)
    for node in made.nodes:
        if node.name in fp16:
            values = [made.constant(name) for name in node.input[1:]]
            assert all(value is not None and value.dtype == np.float16 for value in values)
    with OrtBackend(tiny_model) as before:
        reference = before.infer(noise(0))
    everything = place(graph, target).layers
    quality = [
        signal_to_noise([reference], [infer(quantize(source, ranges, target, fp16=layers), noise(0))])
        for layers in ([], fp16, everything)
    ]
    assert quality[1] > quality[0] - 1  # no worse, apart from chance
    assert quality[2] > 45  # nothing but FP16 left
    path = tmp_path / "fp16.onnx"
    onnx.save(model, path)
    with ActivationRunner(tiny_model) as plain, ActivationRunner(path) as halved:
        name = residual.output[0]
        a, b = plain.run(noise(0))[name], halved.run(noise(0))[name]
    assert signal_to_noise([[a]], [[b]]) > 20


def test_the_rest_runs_in_fp16_but_for_the_sampling_and_the_maps(tiny_model: Path, ranges_of: FindRanges) -> None:
    source, ranges = onnx.shape_inference.infer_shapes(onnx.load(tiny_model)), ranges_of(tiny_model, "tensorrt")
    plain, halved = (quantize(source, ranges, "tensorrt", rest=rest) for rest in ("fp32", "fp16"))
    onnx.checker.check_model(halved, full_check=True)
    kinds = {
        item.name: item.type.tensor_type.elem_type
        for item in onnx.shape_inference.infer_shapes(halved, check_type=True).graph.value_info
    }
    made = Graph(halved)
    placement = place(Graph(source), "tensorrt")
    for node in made.nodes:
        if node.op_type == "Conv":
            weight = made.constant(node.input[1])
            assert (weight is not None and weight.dtype == np.float16) == (node.name in placement.float_layers), node.name
        if node.op_type in ("GridSample", "QuantizeLinear"):
            assert kinds.get(node.input[0], TensorProto.FLOAT) == TensorProto.FLOAT, node.name
        if node.op_type == "Softmax":
            assert kinds[node.output[0]] == TensorProto.FLOAT16, node.name
    assert all(item.type.tensor_type.elem_type == TensorProto.FLOAT for item in halved.graph.output)
    with OrtBackend(tiny_model) as before:
        reference = before.infer(noise(0))
    quality = [signal_to_noise([reference], [infer(model, noise(0))]) for model in (plain, halved)]
    assert quality[1] > quality[0] - 1
    assert halved.ByteSize() < plain.ByteSize()
    nothing_quantized = quantize(source, ranges, "tensorrt", only=(), rest="fp16")
    assert signal_to_noise([reference], [infer(nothing_quantized, noise(0))]) > 45


def test_a_layer_in_fp16_costs_a_byte_a_weight(tiny_model: Path, ranges_of: FindRanges) -> None:
    source, ranges = onnx.load(tiny_model), ranges_of(tiny_model, "tensorrt")
    graph = Graph(source)
    weights = {node.name: graph.constant(node.input[1]) for node in graph.nodes if node.op_type == "Conv"}
    layer = max(place(graph, "tensorrt").layers, key=lambda name: weights[name].size)  # type: ignore[union-attr]
    sizes = [quantize(source, ranges, "tensorrt", fp16=fp16).ByteSize() for fp16 in ((), (layer,))]
    assert sizes[1] - sizes[0] == pytest.approx(weights[layer].size, rel=0.15)  # type: ignore[union-attr]
    assert source.ByteSize() / sizes[0] > 2  # mostly weights, at a quarter of their size


def test_only_one_layer(tiny_model: Path, ranges_of: FindRanges) -> None:
    source = onnx.load(tiny_model)
    layer = place(Graph(source), "tensorrt").layers[5]
    graph = Graph(quantize(source, ranges_of(tiny_model, "tensorrt"), "tensorrt", only=[layer]))
    by_channel = [n for n in graph.nodes if n.op_type == "DequantizeLinear" and graph.maker(n.input[0]) is None]
    assert len(by_channel) == 1 and [n.name for n in graph.takers(by_channel[0].output[0])] == [layer]


def test_an_activation_that_is_always_zero(tiny_model: Path) -> None:
    source = onnx.load(tiny_model)
    for target in TARGETS:
        nothing = dict.fromkeys(place(Graph(source), target).tensors, Range(0.0, 0.0))
        assert all(np.isfinite(output).all() for output in infer(quantize(source, nothing, target), noise(0)))
