"""Indexes an ONNX graph: producers and consumers of tensors, constants, reachability."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper


class Graph:
    """Index of a model's main graph. It does not follow later changes to the model.

    Args:
        model: a model with named nodes, as `python -m export.onnx` writes it.

    Attributes:
        nodes: all nodes, in graph order.
        outputs: names of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.outputs = [item.name for item in model.graph.output]
        self._constants = {item.name: item for item in model.graph.initializer}
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._takers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self._takers[name].append(node)

    def maker(self, tensor: str) -> NodeProto | None:
        """Returns the node that makes a tensor; None for inputs and initializers."""
        return self._makers.get(tensor)

    def takers(self, tensor: str) -> list[NodeProto]:
        """Returns the nodes that read a tensor, in graph order."""
        return self._takers.get(tensor, [])

    def constant(self, tensor: str) -> NDArray[np.generic] | None:
        """Returns the value of an initializer, a Constant node, or an Identity of one; None for any other tensor."""
        if tensor in self._constants:
            return numpy_helper.to_array(self._constants[tensor])
        node = self._makers.get(tensor)
        if node is None:
            return None
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        if node.op_type == "Constant":
            return next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), None)
        return None

    def reaches(self, tensor: str, goal: Callable[[NodeProto, str], bool], stops: frozenset[str]) -> bool:
        """Tells whether a node that `goal` accepts lies downstream of a tensor.

        Args:
            tensor: where to start.
            goal: given a node and the name of the input by which it was reached.
            stops: node types that are not passed.
        """
        return any(goal(node, name) for node, name in self._downstream(tensor, stops))

    def ends_in_output(self, tensor: str, stops: frozenset[str]) -> bool:
        """Tells whether a tensor reaches an output of the graph without passing a node of a type in `stops`."""
        if tensor in self.outputs:
            return True
        return any(
            name in self.outputs
            for node, _ in self._downstream(tensor, stops)
            if node.op_type not in stops
            for name in node.output
        )

    def _downstream(self, tensor: str, stops: frozenset[str]) -> Iterator[tuple[NodeProto, str]]:
        """Yields the nodes after a tensor and the input they are reached by; types in `stops` are yielded but not passed."""
        waiting, seen = [tensor], {tensor}
        while waiting:
            name = waiting.pop()
            for node in self.takers(name):
                yield node, name
                if node.op_type not in stops:
                    waiting += [made for made in node.output if made not in seen]
                    seen.update(node.output)
