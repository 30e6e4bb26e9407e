"""Runs a part of an ONNX graph in FP16: chooses the nodes, and casts where they meet the float32 ones."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calibration.graph import Graph

# Number of leading inputs that hold data; the others are shapes, axes and scales, whose types are fixed. None: all of them.
_DATA_INPUTS: dict[str, int | None] = {
    "Add": None,
    "Clip": None,
    "Concat": None,
    "Conv": None,
    "Div": None,
    "Gather": 1,
    "LeakyRelu": 1,
    "MaxPool": 1,
    "Mul": None,
    "Relu": 1,
    "Reshape": 1,
    "Resize": 1,
    "Sigmoid": 1,
    "Slice": 1,
    "Softmax": 1,
    "Split": 1,
    "Sub": None,
    "Squeeze": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
}
_CONV = frozenset({"Conv"})


def float_region(graph: Graph, quantized: Collection[str]) -> frozenset[str]:
    """Chooses what runs in FP16 where a file is not quantized: the same parts as in a file of precision FP16.

    These are the convolutions that are not quantized and the nodes that work on their results, up to the next quantized node.
    The sampling of a deformable convolution and its grid stay in float32, and so do the raw maps and what is computed from
    them.

    Args:
        graph: of the FP32 model.
        quantized: names of the nodes that read quantized activations.

    Returns:
        Names of nodes.
    """
    inside: set[str] = set()
    halved: set[str] = set()  # the tensors they make
    for node in graph.nodes:
        if node.name in quantized or node.op_type not in _DATA_INPUTS:
            continue
        if node.op_type == "Conv" or (halved.intersection(_data(node)) and not _needs_float32(graph, node)):
            inside.add(node.name)
            halved.update(node.output)
    return frozenset(inside)


def _needs_float32(graph: Graph, node: NodeProto) -> bool:
    """Tells whether a node's result becomes a grid to sample at, or an output of the file, by plain arithmetic."""
    return any(graph.ends_in_output(name, _CONV) or graph.reaches(name, _is_grid, _CONV) for name in node.output)


def _is_grid(taker: NodeProto, name: str) -> bool:
    return taker.op_type == "GridSample" and name == taker.input[1]


def _data(node: NodeProto) -> list[str]:
    """Returns the inputs of a node that hold data, constants included."""
    return [name for name in node.input[: _DATA_INPUTS[node.op_type]] if name]


def run_in_fp16(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Makes nodes compute in FP16, in place: their constants become FP16, and casts are put where FP16 and float32 meet.

    Args:
        model: a model; every tensor that the nodes take and make is float32.
        names: names of the nodes.
    """
    writer = _Writer(Graph(model))
    for node in writer.graph.nodes:
        writer.add(node, node.name in names)
    writer.finish(model.graph)


class _Writer:
    """Copies a graph node by node and inserts casts. An FP16 tensor keeps its name; its copy in float32 gets another.

    Attributes:
        graph: the graph to copy.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._halved: dict[str, str] = {}  # tensor -> its name in FP16
        self._made: set[str] = set()  # tensors that nodes in FP16 make
        self._floats: dict[str, str] = {}  # tensor made in FP16 -> its name in float32, once it is cast back

    def add(self, node: NodeProto, in_fp16: bool) -> None:
        """Copies the next node."""
        data = set(_data(node)) if in_fp16 else set()
        inputs = [self._take_fp16(name) if name in data else self._take_float32(name) for name in node.input]
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        if in_fp16:
            self._made.update(node.output)
            # The outputs of the file keep their names, so the tensors before their casts get others.
            self._halved.update({name: f"{name}/fp16" if name in self.graph.outputs else name for name in node.output})
            copy.output[:] = [self._halved[name] for name in node.output]
        self._nodes.append(copy)

    def _take_fp16(self, name: str) -> str:
        value = self.graph.constant(name)
        made = f"{name}/fp16"
        if value is not None:
            self._constants[made] = numpy_helper.from_array(value.astype(np.float16), made)
            return made
        if name not in self._halved:
            self._halved[name] = self._cast(name, made, TensorProto.FLOAT16)
        return self._halved[name]

    def _take_float32(self, name: str) -> str:
        if name not in self._made:
            return name
        if name not in self._floats:
            made = name if name in self.graph.outputs else f"{name}/float32"
            self._floats[name] = self._cast(self._halved[name], made, TensorProto.FLOAT)
        return self._floats[name]

    def _cast(self, source: str, made: str, kind: int) -> str:
        self._nodes.append(helper.make_node("Cast", [source], [made], name=f"{made}/Cast", to=kind))
        return made

    def finish(self, target: onnx.GraphProto) -> None:
        """Writes the nodes and constants into a graph."""
        for name in self.graph.outputs:
            self._take_float32(name)
        del target.node[:]
        target.node.extend(self._nodes)
        target.initializer.extend(self._constants.values())
        kept = [item for item in target.value_info if item.name not in self._made]  # the others' types have changed
        del target.value_info[:]
        target.value_info.extend(kept)
