"""Float weights with a Q/DQ pair: the same numbers as int8 weights, and taken where the parser wants them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from benchmarks.engine_files import write_precisions
from export.trt import float_weights as module
from export.trt.float_weights import float_weights, parse_network
from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import MissingComponentError, ModelError
from tests.support.engine_models import mini
from tests.support.small_models import CLASSES, noise, settled, tiny
from tests.support.tensorrt_fakes import library
from train.spec import model_spec


def int8_constants(model: onnx.ModelProto) -> list[str]:
    read = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [item.name for item in model.graph.initializer if item.data_type == TensorProto.INT8 and item.name in read]


@pytest.mark.parametrize("kind", ["one scale", "a scale per channel"])
def test_both_forms_compute_the_same(kind: str, tmp_path: Path) -> None:
    if kind == "one scale":
        path = mini(tmp_path / "m.onnx", "int8")
    else:
        config = tiny()
        path = write_precisions(settled(config), model_spec(config, CLASSES), tmp_path)["int8"]
    outputs = []
    for model in (onnx.load(str(path)), float_weights(onnx.load(str(path)))):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"images": noise(0)}))
        onnx.checker.check_model(model)
    assert int8_constants(onnx.load(str(path))) != [] and int8_constants(model) == []
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*outputs))


class Parser:
    """A parser that refuses int8 constants, or everything."""

    num_errors = 1

    def __init__(self, refuses: str) -> None:
        self.refuses = refuses

    def parse_from_file(self, path: str) -> bool:
        return self.refuses == "nothing" or (self.refuses == "int8" and int8_constants(onnx.load(path)) == [])

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(node=lambda: 3, desc=lambda: "invalid weights type of Int8")


def adapter(version: str, refuses: str) -> TensorRT:
    api = library(version)
    api.OnnxParser = lambda network, logger: Parser(refuses)
    return TensorRT("tensorrt", api)


@pytest.mark.parametrize(
    ("version", "refuses", "precision", "rewritten"),
    [
        ("8.6.1", "nothing", "int8", False),
        ("8.6.1", "int8", "int8", True),
        ("8.6.1", "everything", "int8", None),
        ("8.6.1", "everything", "fp16", None),
        ("10.12.0", "int8", "int8", None),
    ],
)
def test_the_parser_decides(
    version: str, refuses: str, precision: str, rewritten: bool | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = mini(tmp_path / "m.onnx", precision)
    before = path.read_bytes()
    trt = adapter(version, refuses)
    builder = trt.create_builder()
    with caplog.at_level(logging.INFO):
        if rewritten is None:
            with pytest.raises(
                ModelError, match=rf"^{path}: .*cannot read node 3 .*: invalid weights type of Int8; export it again"
            ):
                parse_network(trt, builder, path, precision)
        else:
            assert parse_network(trt, builder, path, precision)[2] is rewritten
    assert ("refuses the int8 weights" in caplog.text) is bool(rewritten)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_without_onnx_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_installed", lambda name: False)
    trt = adapter("8.6.1", "int8")
    with pytest.raises(MissingComponentError, match="with float weights it may be read: run `pip install onnx`"):
        parse_network(trt, trt.create_builder(), mini(tmp_path / "m.onnx", "int8"), "int8")
