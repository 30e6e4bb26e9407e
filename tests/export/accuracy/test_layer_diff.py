"""Comparison of two files layer by layer: NaN, and files of a fixed batch size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.activations import ActivationRunner
from calibration.equalize import activation_factors, equalize
from calibration.graph import Graph
from calibration.placement import place
from export.accuracy.layer_diff import compare_layers, first_departure
from export.onnx_export.export import ExportRequest, export_onnx
from runtime.errors import InputError
from tests.support.small_models import noise
from tests.support.small_sets import Exported

LAYER = "/neck/p4/p4.1/conv/Conv"

Alter = Callable[..., Path]


def test_nan_counts_as_a_difference(exported: Exported, altered: Alter) -> None:
    broken = altered(layer=LAYER, factor=float("nan"))
    layers = compare_layers(exported.model, broken, np.zeros((40, 60, 3), np.uint8))
    first = first_departure(layers, 1e9)
    assert first is not None
    assert first.node == LAYER


def test_scaled_channels_are_no_difference(exported: Exported, tmp_path: Path) -> None:
    model, image = onnx.load(str(exported.model)), np.zeros((40, 60, 3), np.uint8)
    tensors = list(place(Graph(model), "tensorrt").tensors)
    with ActivationRunner(exported.model, tensors) as runner:
        values = runner.run(noise(0, 1, model.graph.input[0].type.tensor_type.shape.dim[2].dim_value))
    peaks = {name: np.abs(value).max(axis=(0, 2, 3)).astype(np.float64) for name, value in values.items()}
    scaled = tmp_path / "scaled.onnx"
    onnx.save(equalize(model, peaks), str(scaled))
    assert activation_factors(onnx.load(str(scaled)))
    assert first_departure(compare_layers(exported.model, scaled, image), 1e-3) is None
    assert first_departure(compare_layers(scaled, exported.model, image), 1e-3) is None


def test_files_of_a_fixed_batch_size_are_bisected(exported: Exported, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.onnx"
    for _ in export_onnx(ExportRequest(weights=exported.weights, output=fixed, batch=3)):
        pass
    assert all(layer.difference == 0 for layer in compare_layers(fixed, fixed, np.zeros((40, 60, 3), np.uint8)))
    with pytest.raises(InputError, match="differ in batch size"):
        compare_layers(fixed, exported.model, np.zeros((40, 60, 3), np.uint8))
