"""Ranks layers by how much INT8 hurts them, and finds a small set to return to FP16 so that the AP budget is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx
from tqdm import tqdm

from calibration.graph import Graph
from calibration.quantize import quantize
from calibration.ranges import Range
from runtime.spec import ModelSpec

_MOST_ERROR = 1e6  # of a layer whose outputs are not finite; JSON has no infinity
_PRUNED = 8  # in sets up to this size, each layer is tried without


@dataclass(frozen=True)
class LayerSensitivity:
    """Effect of quantizing one layer alone.

    Attributes:
        layer: name of the convolution.
        error: change of the detections, see `calibration.detection_error`; at most 1e6.
        bytes: growth of the file if the layer goes back to FP16.
        ap_drop: points of AP lost; None if not measured.
    """

    layer: str
    error: float
    bytes: int
    ap_drop: float | None = None

    def __str__(self) -> str:
        cost = "" if self.ap_drop is None else f", {self.ap_drop:.2f} AP"
        return f"{self.layer} ({self.error:.2%} of the detections{cost})"


def rank_layers(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    target: str,
    layers: Sequence[str],
    error: Callable[[onnx.ModelProto], float],
    known: dict[str, float] | None = None,
    save: Callable[[dict[str, float]], None] = lambda _: None,
) -> list[LayerSensitivity]:
    """Quantizes each layer alone and measures what changes in the detections.

    Args:
        model: the FP32 model.
        ranges: of every activation that the placement names.
        target: see `calibration.placement`.
        layers: names of the convolutions to rank.
        error: measures the change of the detections by a model on the images to judge by.
        known: errors of an interrupted run, by layer.
        save: is given all errors so far after each layer.

    Returns:
        One entry a layer, the most sensitive first.
    """
    graph = Graph(model)
    found = dict(known or {})
    for layer in tqdm(layers, desc="sensitivity", unit="layer", disable=None, leave=False):
        if layer not in found:
            found[layer] = min(error(quantize(model, ranges, target, only=[layer])), _MOST_ERROR)
            save(found)
    sizes = {node.name: _elements(graph, node.input[1]) for node in graph.nodes if node.op_type == "Conv"}
    # 16 bits a weight instead of 8.
    return sorted((LayerSensitivity(name, found[name], sizes[name]) for name in layers), key=lambda item: -item.error)


def cut_at_maps(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Returns the model, cut at its raw maps if it selects boxes (`top_k`): a selection is no measure of error."""
    if not spec.top_k:
        return model
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    batch = model.graph.output[0].type.tensor_type.shape.dim[0]
    del cut.graph.output[:], cut.metadata_props[:]
    for level, name in enumerate(spec.map_names):
        shape = [batch.dim_param or batch.dim_value, *spec.map_shape(level)]
        cut.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    onnx.helper.set_model_props(cut, spec.replace(top_k=0).to_metadata())
    return cut


def _elements(graph: Graph, weight: str) -> int:
    value = graph.constant(weight)
    return 0 if value is None else value.size


def choose_layers(
    ranking: Sequence[str], keeps: Callable[[float, frozenset[str]], bool], budget: float
) -> frozenset[str] | None:
    """Chooses a small set of layers to return to FP16, so that half of the budget is kept; all of it where half cannot be.

    On the images that it is chosen by, a choice looks better than on those of the gate.

    Args:
        ranking: names of the layers, the most sensitive first.
        keeps: tells whether a budget in points of AP is kept with these layers in FP16.
        budget: in points of AP.
    """
    for most in (budget / 2, budget):
        chosen = smallest_set(ranking, partial(keeps, most))
        if chosen is not None:
            return chosen
    return None


def smallest_set(ranking: Sequence[str], suffices: Callable[[frozenset[str]], bool]) -> frozenset[str] | None:
    """Finds a small set of layers whose return to FP16 suffices.

    The ranking gives the order in which layers are tried; `suffices` decides. Prefixes of doubling length are tried until
    one suffices, bisection finds the shortest, and in a small set each layer is tried without. This takes a logarithmic
    number of measurements. The result was always measured to suffice. It is the shortest sufficient prefix if returning
    one more layer never makes AP worse.

    Args:
        ranking: names of the layers, the most sensitive first.
        suffices: measures whether AP is kept with these layers in FP16.

    Returns:
        The layers; None if not even all of them suffice. The empty set is not tried: it is known not to suffice.
    """
    low, high = 0, 1  # the first `low` layers are known not to suffice
    while not suffices(frozenset(ranking[:high])):
        if high >= len(ranking):
            return None
        low, high = high, min(high * 2, len(ranking))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(frozenset(ranking[:middle])) else (middle, high)
    chosen = frozenset(ranking[:high])
    if len(chosen) <= _PRUNED:
        for layer in reversed(ranking[: high - 1]):  # the last of the prefix is needed: the prefix without it did not suffice
            if suffices(chosen - {layer}):
                chosen -= {layer}
    return chosen
