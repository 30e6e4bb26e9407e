"""Writes explicit QuantizeLinear / DequantizeLinear pairs into an ONNX model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calibration.fp16 import float_region, run_in_fp16
from calibration.graph import Graph
from calibration.placement import Placement, place
from calibration.ranges import Range

_QUANTIZE = "/QuantizeLinear"
_SIGNED_MAX, _UNSIGNED_MAX = 127, 255
WEIGHT_MAX = {"tensorrt": 127, "cpu": 64}
"""Largest magnitude of a quantized weight. x86 CPUs without VNNI add pairs of uint8 * int8 products in 16 bits, which saturate
beyond 2 * 255 * 64."""
_MIN_SCALE = 1e-12  # an activation that is always zero still needs a scale
_DEAD_SCALE = 1.0  # of an output channel without weights: TensorRT divides its bias by the scales, which must not overflow


def quantize(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    target: str,
    *,
    fp16: Collection[str] = (),
    only: Collection[str] | None = None,
    rest: str = "fp32",
) -> onnx.ModelProto:
    """Copies an FP32 model and quantizes the layers that `calibration.placement` names.

    Weights are signed, symmetric and stored as int8, with a scale per output channel. Activations have a scale per tensor;
    they are signed and symmetric for `tensorrt`, unsigned with a zero point for `cpu`. Biases stay float32.

    Args:
        model: the FP32 model.
        ranges: of every activation that the placement names.
        target: see `calibration.placement`.
        fp16: names of convolutions to run in FP16 instead.
        only: names of the only convolutions to quantize, to measure them one by one; None for all.
        rest: precision of what is not quantized, `fp32` or `fp16` (see `calibration.fp16.float_region`).
    """
    graph = Graph(model)
    everything = place(graph, target)
    without = set(fp16) if only is None else set(everything.layers) - set(only)
    placement = place(graph, target, without=without)
    writer = _Writer(model, graph)
    scales = shared_ranges(placement, ranges)
    for tensor in placement.tensors:
        writer.quantize_activation(tensor, scales[tensor], placement.takers[tensor], signed=target == "tensorrt")
    for node in graph.nodes:
        if node.name in placement.layers:
            writer.quantize_weight(node, WEIGHT_MAX[target])
    result = writer.finish()
    halved = set(fp16)
    if rest == "fp16":
        halved |= float_region(graph, {*placement.layers, *(name for takers in placement.takers.values() for name in takers)})
    run_in_fp16(result, halved)
    drop_unused(result.graph)
    return result


def quantize_activations(
    model: onnx.ModelProto, placement: Placement, ranges: Mapping[str, Range], tensors: Collection[str]
) -> onnx.ModelProto:
    """Copies an FP32 model and quantizes the activations `tensors` and nothing else; see `quantize`."""
    writer = _Writer(model, Graph(model))
    for tensor in tensors:
        writer.quantize_activation(tensor, ranges[tensor], placement.takers[tensor], signed=placement.target == "tensorrt")
    return writer.finish()


def activation_scale(span: Range, signed: bool) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Returns the scale and the zero point of a range, both `[]`: int8 around 0, or uint8."""
    return _symmetric(span) if signed else _asymmetric(span)


def quantized_activation(node: NodeProto) -> str:
    """Returns the name of the activation that a QuantizeLinear of `quantize` is for; it may read a cast of it by now."""
    return node.name.removesuffix(_QUANTIZE)


def shared_ranges(placement: Placement, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Returns the range of each quantized activation; activations that share a scale get the union of their ranges."""
    together: dict[str, Range] = {}
    for tensor, group in placement.tensors.items():
        together[group] = together[group].union(ranges[tensor]) if group in together else ranges[tensor]
    return {tensor: together[group] for tensor, group in placement.tensors.items()}


class _Writer:
    """Collects new nodes and constants, then inserts them into a copy of the model in a valid order."""

    def __init__(self, model: onnx.ModelProto, graph: Graph) -> None:
        self._source, self._graph = model, graph
        self._nodes = {node.name: _copy(node) for node in graph.nodes}
        self._before: dict[str, list[NodeProto]] = {}  # node name -> nodes to insert before it
        self._after: dict[str, list[NodeProto]] = {}  # tensor -> nodes to insert right after its producer
        self._constants: dict[str, TensorProto] = {}

    def quantize_activation(self, tensor: str, span: Range, takers: Collection[str], signed: bool) -> None:
        """Inserts one pair of Q and DQ between a tensor and its `takers`."""
        scale, zero = activation_scale(span, signed)
        inputs = [self._constant(f"{tensor}/scale", scale), self._constant(f"{tensor}/zero_point", zero)]
        names = f"{tensor}{_QUANTIZE}", f"{tensor}/DequantizeLinear"
        self._after[tensor] = [
            helper.make_node("QuantizeLinear", [tensor, *inputs], [f"{tensor}/quantized"], name=names[0]),
            helper.make_node("DequantizeLinear", [f"{tensor}/quantized", *inputs], [f"{tensor}/dequantized"], name=names[1]),
        ]
        for name in takers:
            _rename_input(self._nodes[name], tensor, f"{tensor}/dequantized")

    def quantize_weight(self, node: NodeProto, largest: int) -> None:
        """Stores a convolution's weight as int8, at most `largest`, with a scale per output channel (axis 0)."""
        weight = node.input[1]
        made = f"{weight}/dequantized"
        if f"{weight}/quantized" not in self._constants:  # a head may share its weight between levels
            value = self._graph.constant(weight)
            assert value is not None
            quantized, scale = quantize_weight(value, largest)
            inputs = [
                self._constant(f"{weight}/quantized", quantized),
                self._constant(f"{weight}/scale", scale),
                self._constant(f"{weight}/zero_point", np.zeros(len(scale), np.int8)),
            ]
            dequantize = helper.make_node("DequantizeLinear", inputs, [made], name=f"{weight}/DequantizeLinear", axis=0)
            self._before.setdefault(node.name, []).append(dequantize)
        self._nodes[node.name].input[1] = made

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def finish(self) -> onnx.ModelProto:
        """Returns the new model: each pair follows the tensor it reads; unused constants are removed."""
        result = onnx.ModelProto()
        result.CopyFrom(self._source)
        del result.graph.node[:]
        for item in result.graph.input:
            result.graph.node.extend(self._after.get(item.name, []))
        for original in self._graph.nodes:
            node = self._nodes[original.name]
            result.graph.node.extend([*self._before.get(node.name, []), node])
            for name in node.output:
                result.graph.node.extend(self._after.get(name, []))
        result.graph.initializer.extend(self._constants.values())
        drop_unused(result.graph)
        return result


def quantize_weight(weight: NDArray[Any], largest: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantizes a weight `[O, ...]` to int8 of the same shape and a float32 scale `[O]`: value = scale * quantized.

    Args:
        weight: of a convolution, output channels first.
        largest: magnitude that the largest weight of each output channel becomes, at most 127.
    """
    flat = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
    scale = np.where(flat / largest < _MIN_SCALE, _DEAD_SCALE, flat / largest).astype(np.float32)
    shaped = scale.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
    return np.clip(np.rint(weight / shaped), -largest, largest).astype(np.int8), scale


def _symmetric(span: Range) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    return np.array(max(span.threshold / _SIGNED_MAX, _MIN_SCALE), np.float32), np.array(0, np.int8)


def _asymmetric(span: Range) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    scale = max((span.high - span.low) / _UNSIGNED_MAX, _MIN_SCALE)
    return np.array(scale, np.float32), np.array(min(max(round(-span.low / scale), 0), _UNSIGNED_MAX), np.uint8)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _rename_input(node: NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def drop_unused(graph: onnx.GraphProto) -> None:
    """Removes constants, and Identity nodes of constants, that nothing reads."""
    while True:
        used = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
        idle = [node for node in graph.node if node.op_type in ("Identity", "Constant") and not used & set(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
