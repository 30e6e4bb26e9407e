"""Holds the tests' own ONNX writer to the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.support.onnx_writer import FLOAT, FLOAT16, node, port, tensor, write_model


def test_onnx_reads_what_was_written(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(300, 3, 1, 1)).astype(np.float32)
    nodes = [node("Conv", ["images", "weight"], "found"), node("Cast", ["found"], "out", to=FLOAT16)]
    ends = [port("images", FLOAT, ["N", 3, 64, 160])], [port("out", FLOAT16, [2, 300, 64, 160])]
    write_model(tmp_path / "small.onnx", nodes, *ends, [tensor("weight", weight)], {"key": "value", "größe": "größer"})
    model = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (FLOAT, FLOAT16) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    assert [(item.op_type, list(item.input), list(item.output)) for item in model.graph.node] == [
        ("Conv", ["images", "weight"], ["found"]),
        ("Cast", ["found"], ["out"]),
    ]
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), weight)
    sides = [item.dim_param or item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["N", 3, 64, 160]
    assert {item.key: item.value for item in model.metadata_props} == {"key": "value", "größe": "größer"}
