"""Scales channels against one another, so that those which share one 8-bit scale are about equally large.

A factor per channel moves from a convolution's results into the weights of the convolutions that read them: LeakyReLU, pooling,
resizing, additions and ASFF's weighted sum let it pass (1906.04721, section 4.1). The model computes the same and runs as fast.
The factors suit the activations, as in 2211.10438: weights lose little, since they have a scale per output channel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from calibration.graph import Graph
from runtime.errors import ModelError

Floats = NDArray[np.float64]
_Numbers = NDArray[np.intp]

_KEY = "equalization"  # of the factors in a file's metadata
_OCTAVE = 16  # steps of a factor of 2; factors are whole steps, to be written down briefly and exactly
_MOST = 2 * _OCTAVE  # with 3 or 4 octaves the detections change as much
_PASSING = frozenset({"LeakyRelu", "Relu", "MaxPool", "Resize", "Mul", "QuantizeLinear", "DequantizeLinear", "Cast"})
"""Operators whose result is scaled as their one scaled input is."""


def equalize(model: onnx.ModelProto, peaks: Mapping[str, Floats]) -> onnx.ModelProto:
    """Copies an FP32 model and scales its channels; notes the factors in its metadata.

    Args:
        model: the FP32 model.
        peaks: largest magnitude of each channel `[C]` of every activation that is to be quantized.
    """
    channels = _Channels(Graph(model))
    steps = channels.steps(peaks)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    note_steps(result, {layer: steps[made].tolist() for layer, made in channels.made_by.items() if steps[made].any()})
    constants = {item.name: item for item in result.graph.initializer}
    layers = layer_factors(result)
    for node in result.graph.node:
        if node.name in layers:
            for name, factor in zip(node.input[1:], layers[node.name]):
                if (factor != 1).any():
                    scaled = (numpy_helper.to_array(constants[name]) * factor).astype(np.float32)
                    constants[name].CopyFrom(numpy_helper.from_array(scaled, name))
    return result


def note_steps(model: onnx.ModelProto, steps: Mapping[str, Sequence[int]]) -> None:
    """Writes into a model's metadata by how many steps the results of its convolutions are scaled; others are not."""
    model.metadata_props.add(key=_KEY, value=json.dumps(steps, separators=(",", ":")))


def noted_steps(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Reads what `note_steps` wrote; empty if the model was not equalized.

    Raises:
        ModelError: it is damaged.
    """
    for item in model.metadata_props:
        if item.key == _KEY:
            try:
                found = json.loads(item.value)
                if all(step in range(_MOST + 1) for steps in found.values() for step in steps):
                    return dict(found)
            except (ValueError, TypeError, AttributeError, RecursionError):
                pass
            raise ModelError("the INT8 file's notes on scaled channels are damaged; calibrate again")
    return {}


def layer_factors(model: onnx.ModelProto) -> dict[str, tuple[Floats, Floats]]:
    """Returns what the weights and the biases of an equalized model were multiplied by.

    Returns:
        By convolution, the factors of its weight, `[O, I, 1, 1]` or with 1 in the place of I, and of its bias, `[O]`; other
        layers were not scaled.
    """
    graph = Graph(model)
    channels = _Channels(graph)
    factors = channels.factors(noted_steps(model))
    found = {}
    for node in graph.nodes:
        if node.name in channels.made_by:
            made, read = factors[channels.made_by[node.name]], channels.of.get(node.input[0])
            taken = np.ones(1) if read is None else factors[read]
            if (made != 1).any() or (taken != 1).any():
                by_input = taken.reshape(-1, 1, 1, 1) if _groups(node) > 1 else taken.reshape(1, -1, 1, 1)
                found[node.name] = made.reshape(-1, 1, 1, 1) / by_input, made
    return found


def activation_factors(model: onnx.ModelProto) -> dict[str, Floats]:
    """Returns the factors `[C]` of the activations of an equalized model; others are not scaled."""
    channels = _Channels(Graph(model))
    factors = channels.factors(noted_steps(model))
    return {name: factors[numbers] for name, numbers in channels.of.items() if (factors[numbers] != 1).any()}


class _Channels:
    """Numbers the channels of a model's activations; nodes that let a factor pass keep the numbers.

    Attributes:
        of: by activation, the number of each channel `[C]`; activations that are missing cannot be scaled.
        made_by: by convolution, the numbers of its results.
    """

    def __init__(self, graph: Graph) -> None:
        self.of: dict[str, _Numbers] = {}
        self.made_by: dict[str, _Numbers] = {}
        self._count = 0
        self._ties: list[tuple[_Numbers, _Numbers]] = []
        self._fixed: list[_Numbers] = []
        for node in graph.nodes:
            if node.op_type == "Conv":
                self._add_convolution(graph, node)
            else:
                self._add_node(node)
        self._fix(graph.outputs)

    def _add_convolution(self, graph: Graph, node: NodeProto) -> None:
        weight = _stored(graph, node.input[1])
        if weight is None:
            self._fix(node.input[:1])
            return
        made = np.arange(self._count, self._count + len(weight))
        self._count += len(weight)
        self.of[node.output[0]] = self.made_by[node.name] = made
        is_depthwise = _groups(node) == len(weight) and weight.shape[1] == 1
        if len(graph.takers(node.input[1])) > 1 or not (_groups(node) == 1 or is_depthwise):
            self._fix([node.input[0], node.output[0]])
        if any(graph.maker(name) or len(graph.takers(name)) > 1 for name in node.input[2:]):  # a bias of several layers
            self._fix(node.output)

    def _add_node(self, node: NodeProto) -> None:
        known = [self.of[name] for name in node.input if name in self.of]
        if len(known) == 1 and node.op_type in _PASSING:
            self.of[node.output[0]] = known[0]
        elif node.op_type == "Add" and len(known) == 2 and len(known[0]) == len(known[1]):
            self._ties.append((known[0], known[1]))
            self.of[node.output[0]] = known[0]
        elif node.op_type == "Concat" and len(known) == len(node.input) and _attribute(node, "axis", 0) == 1:
            self.of[node.output[0]] = np.concatenate(known)
        else:
            self._fix(node.input)

    def _fix(self, names: Sequence[str]) -> None:
        self._fixed += [self.of[name] for name in names if name in self.of]

    def steps(self, peaks: Mapping[str, Floats]) -> NDArray[np.int64]:
        """Chooses by how many steps each channel grows: until it is as large as the largest, in every activation with it."""
        steps = np.full(self._count, np.inf)
        for name in peaks.keys() & self.of.keys():
            np.minimum.at(steps, self.of[name], _wanted(peaks[name]))
        for numbers in self._fixed:
            steps[numbers] = 0
        before = None
        while before is None or (steps != before).any():
            before = steps.copy()
            for first, second in self._ties:
                steps[first] = steps[second] = np.minimum(steps[first], steps[second])
        return np.where(np.isfinite(steps), steps, 0).astype(np.int64)  # of what is not quantized

    def factors(self, steps: Mapping[str, Sequence[int]]) -> Floats:
        """Returns the factor of each number; raises ModelError if the model has other layers than those noted."""
        factors = np.ones(self._count)
        for layer, values in steps.items():
            if len(self.made_by.get(layer, ())) != len(values):
                raise ModelError(f"the INT8 file's notes on scaled channels name {layer}, which it lacks; calibrate again")
            factors[self.made_by[layer]] = 2.0 ** (np.array(values) / _OCTAVE)
        return factors


def _wanted(peaks: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.floor(_OCTAVE * np.log2(peaks.max() / peaks))
    return np.asarray(np.clip(np.nan_to_num(steps, nan=0, posinf=_MOST), 0, _MOST))


def _stored(graph: Graph, name: str) -> NDArray[np.generic] | None:
    """Returns a weight as it is stored, perhaps quantized; None if it is none of the model's initializers."""
    maker = graph.maker(name)
    if maker is not None and maker.op_type not in ("DequantizeLinear", "Cast"):
        return None
    return graph.constant(name if maker is None else maker.input[0])


def _groups(node: NodeProto) -> int:
    return _attribute(node, "group", 1)


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)
