"""Activations handed out are those that the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.activations import ActivationRunner
from runtime.backends.ort import OrtBackend
from runtime.errors import InputError, ModelError
from tests.support.small_models import noise


def test_outputs_among_the_activations_are_the_models(tiny_model: Path) -> None:
    with ActivationRunner(tiny_model) as runner, OrtBackend(tiny_model) as backend:
        values, expected = runner.run(noise(0)), backend.infer(noise(0))
        assert runner.batch_size is None
        assert list(values) == list(runner.names)
    for name, output in zip(("p5", "p4", "p3"), expected):
        np.testing.assert_allclose(values[name], output, rtol=1e-3, atol=1e-4)
    assert len(values) > 150 and all(value.dtype == np.float32 for value in values.values())


def test_an_activation_is_numpys(tiny_model: Path) -> None:
    name = "/backbone/stem/conv/Conv_output_0"
    with ActivationRunner(tiny_model) as runner:
        values = runner.run(noise(0))
        assert runner.producers[name] == ("/backbone/stem/conv/Conv", "Conv")
    after = next(value for key, value in values.items() if key.startswith("/backbone/stem/act"))
    np.testing.assert_allclose(after, np.where(values[name] > 0, values[name], 0.1 * values[name]), rtol=1e-6)


def test_chosen_ones_come_in_graph_order_the_input_first(tiny_model: Path) -> None:
    wanted = ["p4", "/backbone/stem/conv/Conv_output_0", "images"]
    with ActivationRunner(tiny_model, wanted) as runner:
        assert runner.names == ("images", "/backbone/stem/conv/Conv_output_0", "p4")
        assert np.array_equal(runner.run(noise(0))["images"], noise(0))


def test_what_cannot_be_used_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no activation 'nowhere'"):
        ActivationRunner(tiny_model, ["nowhere"])
    with pytest.raises(InputError, match="no such model file"):
        ActivationRunner(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a usable ONNX model"):
        ActivationRunner(tmp_path / "bad.onnx")
