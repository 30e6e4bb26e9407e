"""What is seen inside a file is what flows there: held to the file's own outputs and to a node computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import CLASSES, settled, tiny

from calibration.activations import ActivationRunner
from export.onnx import write_onnx
from runtime.errors import InputError, ModelError
from runtime.ort_backend import OrtBackend
from train.spec import model_spec


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """images -> Mul by a constant that is itself computed -> Relu -> out; beside it a shape, which is no float."""
    nodes = [
        helper.make_node("Neg", ["half"], ["minus_half"], "negate"),
        helper.make_node("Mul", ["images", "minus_half"], ["scaled"], "scale"),
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Relu", ["scaled"], ["out"]),
    ]
    shape = ["N", 3, 2, 2]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_every_float_that_depends_on_the_picture_is_returned_in_graph_order(small: Path) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(np.float32)
    with ActivationRunner(small) as runner:
        assert runner.names == ("scaled", "out")  # neither the weight's negation nor the whole numbers of the shape
        assert runner.producers == {"scaled": ("scale", "Mul"), "out": ("out", "Relu")}
        found = runner.run(images)
    np.testing.assert_allclose(found["scaled"], images * -0.5)
    np.testing.assert_allclose(found["out"], np.maximum(images * -0.5, 0))


def test_chosen_tensors_alone(small: Path) -> None:
    with ActivationRunner(small, ["scaled"]) as runner:
        assert runner.names == ("scaled",)
        assert list(runner.run(np.ones((1, 3, 2, 2), np.float32))) == ["scaled"]


@pytest.mark.parametrize("names", [["nowhere"], ["scaled", "shape"], ["minus_half"], []])
def test_a_tensor_that_is_not_there_is_refused(names: list[str], small: Path) -> None:
    with pytest.raises(InputError, match="has no float activation"):
        ActivationRunner(small, names)


def test_an_exported_detector_runs_as_its_own_file_does(tmp_path: Path) -> None:
    config = tiny()
    path = tmp_path / "m.onnx"
    spec = model_spec(config, CLASSES)
    write_onnx(settled(config), spec, path)
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    with ActivationRunner(path) as runner, OrtBackend(path) as backend:
        found = runner.run(images)
        for name, output in zip(spec.output_names, backend.infer(images)):
            np.testing.assert_allclose(found[name], output, atol=1e-4)
    assert {"Conv", "GridSample", "LeakyRelu"} <= {op for _, op in runner.producers.values()}
    assert all(value.dtype == np.float32 for value in found.values())


def test_files_that_cannot_be_used_are_refused_in_one_line(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        ActivationRunner(tmp_path / "absent.onnx")
    for name, content in {"empty": b"", "noise": b"noise" * 20, "half": small.read_bytes()[:60]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            ActivationRunner(tmp_path / name)
    runner = ActivationRunner(small)
    with pytest.raises(ModelError, match="failed to run"):
        runner.run(np.ones((1, 4, 2, 2), np.float32))
    runner.close()
    runner.close()
    with pytest.raises(ModelError, match="closed"):
        runner.run(np.ones((1, 3, 2, 2), np.float32))
