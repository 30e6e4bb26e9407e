"""Speed against the FP32 file: the ratio, and what the gate makes of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from calibration.budget import FAILED, PASSED
from export.accuracy.gate import ExportedFile, Outcome, _check_speed_reference, _with_speed
from export.accuracy.limits import Limits
from export.accuracy.speed import Speedup, measure_speedup
from runtime.backends.base import Backend
from runtime.errors import InputError
from runtime.spec import ModelSpec


class Sleeper:
    """A backend that takes a known time and finds nothing."""

    title, batch_size = "sleeper", None

    def __init__(self, spec: ModelSpec, seconds: float) -> None:
        self.spec, self.seconds = spec, seconds

    def infer(self, images: Any) -> list[Any]:
        time.sleep(self.seconds)
        return [np.full((len(images), *self.spec.map_shape(level)), -40, np.float32) for level in range(3)]


def test_the_ratio_is_that_of_the_times(make_spec: Any) -> None:
    def sleeper(seconds: float) -> Backend:
        return cast(Backend, Sleeper(spec, seconds))

    image = np.zeros((64, 64, 3), np.uint8)
    spec = make_spec()
    found = measure_speedup(sleeper(0.02), {"fast": sleeper(0.005), "slow": sleeper(0.06)}, image)
    assert found["fast"].low > 1 > found["slow"].high
    assert found["fast"].low <= found["fast"].ratio <= found["fast"].high


@pytest.mark.parametrize(
    ("precision", "ratio", "required", "status", "told"),
    [
        ("int8", 1.5, None, PASSED, ""),
        ("int8", 0.6, None, PASSED, "is not faster than FP32 on this machine: 0.60 (0.50 to 0.70) of its speed"),
        ("int8", 1.5, 1.2, PASSED, ""),
        ("int8", 1.1, 1.2, FAILED, "runs at 1.10 (1.00 to 1.20) of the speed of FP32 here, 1.2 is required"),
        ("fp16", 0.6, 1.2, PASSED, ""),  # it is made for GPUs, which this machine lacks
    ],
)
def test_what_the_gate_makes_of_it(
    precision: str, ratio: float, required: float | None, status: str, told: str, make_spec: Any
) -> None:
    before = Outcome("m", Path("m.onnx"), make_spec(precision=precision), None, PASSED)
    found = _with_speed(before, Speedup(ratio, ratio - 0.1, ratio + 0.1), required)
    assert found.status == status
    assert " ".join((*found.reasons, *found.notes)) == told


def test_speed_is_not_required_without_what_it_is_measured_by(make_spec: Any) -> None:
    files = {
        precision: ExportedFile(precision, Path(precision), cast(Backend, Sleeper(make_spec(precision=precision), 0)))
        for precision in ("fp32", "int8")
    }
    for given, required in ((["int8", "fp32"], 1.2), (["fp32"], 1.2), (["int8"], None)):
        _check_speed_reference([files[name] for name in given], Limits(require_speedup=required))
    with pytest.raises(InputError, match="timed against the FP32 file; give that too"):
        _check_speed_reference([files["int8"]], Limits(require_speedup=1.2))
