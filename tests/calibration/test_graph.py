"""Questions about a graph small enough to answer by looking."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.graph import Graph


@pytest.fixture
def graph() -> Graph:
    """images -> first (Conv) -> act -> second (Conv) -> out; act -> side (Mul) -> out2; the weight comes by Identity."""
    nodes = [
        helper.make_node("Identity", ["w"], ["same_w"], name="same"),
        helper.make_node("Constant", [], ["two"], name="two", value=numpy_helper.from_array(np.float32(2))),
        helper.make_node("Conv", ["images", "w"], ["a"], name="first"),
        helper.make_node("LeakyRelu", ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "same_w"], ["out"], name="second"),
        helper.make_node("Mul", ["b", "two"], ["out2"], name="side"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("images", "out", "out2")]
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    return Graph(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])))


def test_makers_and_takers(graph: Graph) -> None:
    maker = graph.maker("b")
    assert maker is not None and maker.name == "act"
    assert graph.maker("images") is None and graph.maker("w") is None
    assert [node.name for node in graph.takers("b")] == ["second", "side"]
    assert graph.takers("out") == []


def test_constants_are_seen_through_identity(graph: Graph) -> None:
    for name in ("w", "same_w"):
        value = graph.constant(name)
        assert value is not None and value.shape == (3, 3, 1, 1)
    assert graph.constant("two") == 2
    assert graph.constant("b") is None and graph.constant("images") is None


def test_reach_ends_at_the_types_that_stop_it(graph: Graph) -> None:
    def is_second(node: onnx.NodeProto, name: str) -> bool:
        return node.name == "second" and name == "b"

    assert graph.reaches("a", is_second, frozenset({"Conv"}))  # seen, though not passed
    assert not graph.reaches("images", is_second, frozenset({"Conv"}))
    assert graph.reaches("images", is_second, frozenset())


def test_outputs_are_reached_by_arithmetic(graph: Graph) -> None:
    stops = frozenset({"Conv"})
    assert graph.ends_in_output("out", stops)
    assert graph.ends_in_output("a", stops)  # by way of `side`
    assert not graph.ends_in_output("a", frozenset({"Conv", "Mul"}))
    assert not graph.ends_in_output("images", stops)
