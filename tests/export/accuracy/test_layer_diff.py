"""Comparison of two files layer by layer: NaN, and files of a fixed batch size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.accuracy.layer_diff import compare_layers, first_departure
from export.onnx_export.export import ExportRequest, export_onnx
from runtime.errors import InputError
from tests.support.small_sets import Exported

LAYER = "/neck/p4/p4.1/conv/Conv"

Alter = Callable[..., Path]


def test_nan_counts_as_a_difference(exported: Exported, altered: Alter) -> None:
    broken = altered(layer=LAYER, factor=float("nan"))
    layers = compare_layers(exported.model, broken, np.zeros((40, 60, 3), np.uint8))
    first = first_departure(layers, 1e9)
    assert first is not None
    assert first.node == LAYER


def test_files_of_a_fixed_batch_size_are_bisected(exported: Exported, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.onnx"
    for _ in export_onnx(ExportRequest(weights=exported.weights, output=fixed, batch=3)):
        pass
    assert all(layer.difference == 0 for layer in compare_layers(fixed, fixed, np.zeros((40, 60, 3), np.uint8)))
    with pytest.raises(InputError, match="differ in batch size"):
        compare_layers(fixed, exported.model, np.zeros((40, 60, 3), np.uint8))
