"""Compares engines on a real GPU with ONNX Runtime; skipped, with the reason, where they cannot run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.engine_files import write_precisions
from export import engine
from runtime.backends.open import open_backend
from runtime.backends.tensorrt.cuda import open_device
from runtime.backends.tensorrt.library import open_tensorrt
from runtime.errors import MissingComponentError
from tests.support.small_models import CLASSES, settled, tiny
from train.spec import model_spec

_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2}  # of the map's scale


@pytest.mark.gpu
@pytest.mark.parametrize("flavor", ["tensorrt", "rtx"])
def test_engines_answer_as_onnx_runtime_does(flavor: str, tmp_path: Path) -> None:
    try:
        open_device()
        open_tensorrt(flavor)
    except MissingComponentError as error:
        pytest.skip(str(error))
    files = write_precisions(settled(tiny()), model_spec(tiny(), CLASSES), tmp_path)
    images = np.random.default_rng(0).random((11, 3, 64, 64), np.float32)
    for precision, tolerance in _TOLERANCE.items():
        path = tmp_path / f"{precision}.engine"
        assert engine.main(["--onnx", str(files[precision]), "--flavor", flavor, "--output", str(path)]) == 0
        with open_backend(files["fp32"]) as reference, open_backend(path) as backend:
            for count in (1, 1, 1, 11, 3):  # plain, captured, replayed, split, another shape
                for found, expected in zip(backend.infer(images[:count]), reference.infer(images[:count])):
                    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
