"""Decides which convolutions are quantized, and which tensors share a scale.

These convolutions stay in float for every target: those whose results are the raw outputs or enter them by plain arithmetic,
those that compute the sampling points of a deformable convolution, and those that feed the fusion's softmax. For TensorRT, the
convolutions after the sampling stay in float too. Every other convolution is quantized.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx import NodeProto

from calibration.graph import Graph

TARGETS = ("tensorrt", "cpu")
_CONV = frozenset({"Conv"})
_JOINS = frozenset({"Add", "Concat"})
# Concatenation, pooling and resizing in 8 bits gain nothing (measured, see docs/benchmarks.md).
_CPU_TYPES = frozenset({"LeakyRelu", "Relu", "Clip", "Add"})


@dataclass(frozen=True)
class Placement:
    """Layers and tensors to quantize in one graph.

    Attributes:
        target: `tensorrt` quantizes the inputs of convolutions, residual additions and concatenations (signed, symmetric);
            `cpu` also the results of convolutions, their activation functions and residual additions, so that these run
            back to back in 8 bits (unsigned).
        layers: names of the quantized convolutions, in graph order.
        float_layers: names of the convolutions left in float by rule.
        tensors: activations to quantize, in graph order, each with the tensor whose scale it shares (mostly itself).
        takers: names of the nodes that read the quantized value, by activation.
    """

    target: str
    layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    tensors: dict[str, str]
    takers: dict[str, frozenset[str]]


def place(graph: Graph, target: str, without: Collection[str] = ()) -> Placement:
    """Decides what to quantize in a graph.

    Args:
        graph: of an FP32 model.
        target: one of `TARGETS`.
        without: names of convolutions to leave in float besides those left by rule.
    """
    convs = [node for node in graph.nodes if node.op_type == "Conv"]
    by_rule = {node.name for node in convs if _stays_float(graph, node, target)}
    layers = [node for node in convs if node.name not in by_rule and node.name not in without]
    nodes = _around(graph, layers) if target == "tensorrt" else _region(graph, layers)
    takers: dict[str, set[str]] = {}
    for node in nodes:
        for tensor in _activations(node):
            takers.setdefault(tensor, set()).add(node.name)
    if target == "cpu":  # an 8-bit kernel writes 8 bits, so results are quantized too
        for node in nodes:
            takers.setdefault(node.output[0], set()).update(taker.name for taker in graph.takers(node.output[0]))
    shared = _shared_scales(nodes)
    in_order = dict.fromkeys(name for node in graph.nodes for name in (*node.input, *node.output))
    tensors = {name: shared.get(name, name) for name in in_order if name in takers}
    return Placement(
        target,
        tuple(node.name for node in layers),
        tuple(node.name for node in convs if node.name in by_rule),
        tensors,
        {name: frozenset(takers[name]) for name in tensors},
    )


def _stays_float(graph: Graph, conv: NodeProto, target: str) -> bool:
    result = conv.output[0]
    if graph.constant(conv.input[1]) is None or graph.ends_in_output(result, _CONV):
        return True

    def steers(node: NodeProto, name: str) -> bool:
        return node.op_type == "Softmax" or (node.op_type == "GridSample" and name == node.input[1])

    # On a CPU the convolution after the sampling is a fifth of all the work, and INT8 costs it little (docs/benchmarks.md).
    return graph.reaches(result, steers, _CONV) or (target == "tensorrt" and _follows_sampling(graph, conv))


def _follows_sampling(graph: Graph, conv: NodeProto) -> bool:
    """Tells whether the input of a convolution is the result of GridSample, apart from reshaping and casting."""
    node = graph.maker(conv.input[0])
    while node is not None and node.op_type in ("Reshape", "Cast", "Identity", "Transpose"):
        node = graph.maker(node.input[0])
    return node is not None and node.op_type == "GridSample"


def _activations(node: NodeProto) -> list[str]:
    """Returns the activations among the inputs of a node: all inputs of a join, else the first."""
    return list(node.input if node.op_type in _JOINS else node.input[:1])


def _around(graph: Graph, layers: list[NodeProto]) -> list[NodeProto]:
    """Returns the convolutions, and the additions and concatenations that feed them without arithmetic between."""
    found, waiting = list(layers), list(layers)
    seen = {node.name for node in layers}
    while waiting:
        node = waiting.pop()
        for tensor in _activations(node):
            maker = graph.maker(tensor)
            while maker is not None and maker.op_type in ("Resize", "MaxPool", "LeakyRelu", "Relu", "Clip"):
                maker = graph.maker(maker.input[0])
            if maker is not None and maker.name not in seen and _joins_activations(graph, maker):
                seen.add(maker.name)
                found.append(maker)
                waiting.append(maker)
    return found


def _joins_activations(graph: Graph, node: NodeProto) -> bool:
    """Tells whether a node joins features, as residual units and pyramids do, and not weighted features as ASFF does."""
    if node.op_type not in _JOINS:
        return False
    makers = [graph.maker(name) for name in node.input]
    return all(maker is not None and maker.op_type not in ("Mul", "Constant", "Unsqueeze") for maker in makers) and not any(
        graph.constant(name) is not None for name in node.input
    )


def _region(graph: Graph, layers: list[NodeProto]) -> list[NodeProto]:
    """Returns the convolutions and all nodes around them that a CPU computes in 8 bits."""
    found = list(layers)
    inside = {node.output[0] for node in layers}
    for node in graph.nodes:  # in graph order, so that the nodes before are decided
        if node.op_type not in _CPU_TYPES or (node.op_type in _JOINS and not _joins_activations(graph, node)):
            continue
        if all(name in inside for name in _activations(node)):
            found.append(node)
            inside.add(node.output[0])
    return found


def _shared_scales(nodes: list[NodeProto]) -> dict[str, str]:
    """Maps the inputs and the result of each concatenation to one of them: they must have the same scale."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for node in nodes:
        if node.op_type == "Concat":
            for name in node.input:
                parent[root(name)] = root(node.output[0])
    return {name: root(name) for name in parent}
