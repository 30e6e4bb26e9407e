"""Tests that the network trained with rounding computes what the INT8 file does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from calibration.activations import ActivationRunner
from calibration.equalize import equalize
from calibration.graph import Graph
from calibration.placement import place
from calibration.quantize import quantize
from calibration.ranges import Range
from export.onnx_export.tracer import write_onnx
from export.recovery.quant_plan import read_quant_plan
from runtime.errors import ModelError
from tests.support.small_models import CLASSES, noise, settled, tiny
from train.model import DetectorModel
from train.model.folding import fold_batch_norm, unfolded_weights
from train.qat.fake_quant import FakeQuantization, scale_layers
from train.spec import model_spec


def quantized(path: Path, target: str, **changes: Any) -> DetectorModel:
    """Writes the INT8 file of a small model, with channels scaled at random; returns the model."""
    config = tiny(**changes)
    model = settled(config)
    write_onnx(model, model_spec(config, CLASSES), path)
    file = onnx.load(str(path))
    tensors, rng = place(Graph(file), target).tensors, np.random.default_rng(0)
    with ActivationRunner(path, list(tensors)) as runner:
        values = runner.run(noise(0))
    file = equalize(file, {name: rng.uniform(0.3, 1, value.shape[1]) for name, value in values.items()})
    ranges = dict.fromkeys(tensors, Range(-3.0, 5.0))
    onnx.save(quantize(file, ranges, target), str(path))
    return model


class Led(FakeQuantization):
    """Puts the file's result in the place of each layer's own, so that each is compared with equal inputs."""

    results: dict[str, Any]
    differences: dict[str, Any]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counts.copy()
        out = super().__torch_function__(func, types, args, kwargs)
        for prefix in self._counts - before:
            name = f"{prefix}_{before[prefix]}" if before[prefix] else prefix
            wanted = torch.from_numpy(self.results[name])
            if name in self._plan.outputs:
                wanted = torch.fake_quantize_per_tensor_affine(wanted, *self._plan.outputs[name])
            self.differences[name] = ((out - wanted).abs() / wanted.abs().max()).numpy()
            return wanted.clone()
        return out


@pytest.mark.parametrize(
    ("target", "changes"),
    [("tensorrt", {}), ("cpu", {}), ("tensorrt", {"backbone": "mobilenetv2"})],
)
def test_every_layer_computes_what_the_file_does(tmp_path: Path, target: str, changes: dict[str, Any]) -> None:
    """With equal inputs: 1e-5 is rounding in float32, and the few values on the border of two steps may become either."""
    path = tmp_path / "m.onnx"
    model = fold_batch_norm(quantized(path, target, **changes))
    plan = read_quant_plan(path)
    assert plan.factors
    scale_layers(model, plan)
    file = onnx.load(str(path))
    made = {node.name: node.output[0] for node in file.graph.node if node.name in plan.layers}
    kept = {item.name for item in file.graph.output}
    file.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made.values() if name not in kept)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = noise(0, side=session.get_inputs()[0].shape[2])
    led = Led(model, plan)
    led.results, led.differences = dict(zip(made, session.run(list(made.values()), {"images": images}))), {}
    with torch.no_grad(), led:
        model.maps(torch.from_numpy(images))
    assert led.differences.keys() == plan.layers
    values = np.concatenate([found.ravel() for found in led.differences.values()])
    assert (values > 1e-5).mean() < 1e-2
    assert np.median([found.max() for found in led.differences.values()]) < 1e-5


def test_another_network_is_refused(tmp_path: Path) -> None:
    quantized(tmp_path / "m.onnx", "tensorrt")
    other, plan = fold_batch_norm(settled(tiny(fusion="none"))), read_quant_plan(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="another network: /fusion"):
        scale_layers(other, plan)
    with (
        pytest.raises(ModelError, match="another network"),
        torch.no_grad(),
        FakeQuantization(other, plan),
    ):
        other.maps(torch.from_numpy(noise(0)))


def test_unfolded_weights_fold_to_the_same_bits() -> None:
    model, again = settled(tiny()), settled(tiny())
    folded = fold_batch_norm(model)
    again.load_state_dict(unfolded_weights(folded, model))
    for one, other in zip(folded.state_dict().values(), fold_batch_norm(again).state_dict().values()):
        assert torch.equal(one, other)
