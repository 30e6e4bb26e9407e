"""Where quantization goes: which convolutions, and which tensors share a scale.

In float stay, for every target: the convolutions whose results are the raw outputs or enter them by plain arithmetic, those
that steer the sampling of a deformable convolution, and those that make the fusion's softmax; for TensorRT also those that
follow the sampling. Everything else that has weights is quantized.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx import NodeProto

from calibration.graph import Graph

TARGETS = ("tensorrt", "cpu")
_CONV = frozenset({"Conv"})
_JOINS = frozenset({"Add", "Concat"})
# Concatenation, pooling and resizing in 8 bits too were measured to gain nothing (docs/benchmarks.md).
_CPU_TYPES = frozenset({"LeakyRelu", "Relu", "Clip", "Add"})


@dataclass(frozen=True)
class Placement:
    """What to quantize in one graph.

    Attributes:
        target: `tensorrt` quantizes what enters a convolution, a residual addition or a concatenation (signed, symmetric);
            `cpu` also the results of convolutions, their activation functions and residual additions, so that these run
            back to back in 8 bits (unsigned).
        layers: names of the quantized convolutions, in graph order.
        float_layers: names of the convolutions left in float by rule.
        tensors: activations to quantize, each with the one whose scale it shares (itself, mostly), in graph order.
        takers: for each of them, the names of the nodes that read the quantized value.
    """

    target: str
    layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    tensors: dict[str, str]
    takers: dict[str, frozenset[str]]


def place(graph: Graph, target: str, without: Collection[str] = ()) -> Placement:
    """Decide for a graph.

    Args:
        without: names of convolutions to leave alone besides those that the rules leave in float.
    """
    convs = [node for node in graph.nodes if node.op_type == "Conv"]
    by_rule = {node.name for node in convs if _stays_float(graph, node, target)}
    layers = [node for node in convs if node.name not in by_rule and node.name not in without]
    nodes = _around(graph, layers) if target == "tensorrt" else _region(graph, layers)
    takers: dict[str, set[str]] = {}
    for node in nodes:
        for tensor in _activations(node):
            takers.setdefault(tensor, set()).add(node.name)
    if target == "cpu":  # results too: a kernel in 8 bits writes 8 bits
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

    # On a CPU the sampled columns' convolution is a fifth of all the work, and 8 bits cost it little (docs/benchmarks.md).
    return graph.reaches(result, steers, _CONV) or (target == "tensorrt" and _follows_sampling(graph, conv))


def _follows_sampling(graph: Graph, conv: NodeProto) -> bool:
    """Whether its input comes from GridSample through nothing but reshaping and casting."""
    node = graph.maker(conv.input[0])
    while node is not None and node.op_type in ("Reshape", "Cast", "Identity", "Transpose"):
        node = graph.maker(node.input[0])
    return node is not None and node.op_type == "GridSample"


def _activations(node: NodeProto) -> list[str]:
    """The inputs of a node to quantize that are activations: all that are joined, else the first."""
    return list(node.input if node.op_type in _JOINS else node.input[:1])


def _around(graph: Graph, layers: list[NodeProto]) -> list[NodeProto]:
    """The convolutions, and the additions and concatenations of activations that feed them without arithmetic between."""
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
    """An addition or concatenation of features, as residual units and pyramids have them; not one of weighted features."""
    if node.op_type not in _JOINS:
        return False
    makers = [graph.maker(name) for name in node.input]
    return all(maker is not None and maker.op_type not in ("Mul", "Constant", "Unsqueeze") for maker in makers) and not any(
        graph.constant(name) is not None for name in node.input
    )


def _region(graph: Graph, layers: list[NodeProto]) -> list[NodeProto]:
    """The convolutions and all that a CPU computes in 8 bits around them."""
    found = list(layers)
    inside = {node.output[0] for node in layers}
    for node in graph.nodes:  # in graph order: a node belongs if its activations come from nodes that do
        if node.op_type not in _CPU_TYPES or (node.op_type in _JOINS and not _joins_activations(graph, node)):
            continue
        if all(name in inside for name in _activations(node)):
            found.append(node)
            inside.add(node.output[0])
    return found


def _shared_scales(nodes: list[NodeProto]) -> dict[str, str]:
    """One representative for tensors that must have the same scale: a concatenation's inputs and its result."""
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
