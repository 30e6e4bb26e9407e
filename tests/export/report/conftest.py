"""A verification that never ran, and its page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.budget import FAILED, PASSED
from export.accuracy.gate import NOT_RUN, Outcome, Verification
from export.accuracy.limits import Limits
from export.report import write_report
from runtime.datasets.dataset import Dataset, LabeledImage
from runtime.manifest import Origin, write_manifest
from runtime.media.image import write_image
from runtime.spec import ModelSpec
from tests.support.ground_truth import truth_of
from tests.support.report_pages import (
    BAD,
    CALIBRATION,
    GOOD,
    NASTY,
    OPERATING,
    SPEED,
    detection,
    measured,
)


@pytest.fixture
def found(tmp_path: Path) -> Verification:
    """A verification with one file of each fate, a class with a hostile name, and an image that cannot be read."""
    rng = np.random.default_rng(0)
    entries = []
    boxes = np.array([(10, 10, 50, 40), (90, 5, 99, 9)], np.float32)
    for index in range(3):
        path = tmp_path / f"{index + 1}.png"
        if index < 2:
            write_image(path, rng.integers(0, 256, (90, 160, 3), dtype=np.uint8))
        entries.append(LabeledImage(index, path, 160, 90, boxes, np.array([0, 1]), np.array([False, True])))
    spec = ModelSpec("tiny", ("cat", NASTY, "unseen"), (64, 64), (((9.0, 9.0),),) * 3, source_sha256="0" * 64)
    dataset = Dataset(tmp_path, "val", spec.class_names, tuple(entries), truth_of([]))
    before = [detection(0, 10, 0.9), detection(1, 10, 0.8), detection(1, 80, 0.7, 2), detection(1, 60, 0.1)]
    after = [detection(0, 11, 0.9), detection(1, 10, 0.6), detection(1, 100, 0.5)]
    outcomes = []
    for name, precision, measurement, status, reasons, criteria in (
        ("good.onnx", "fp32", measured("good.onnx", 0.6, before, 1e-7), PASSED, (), GOOD),
        ("bad.onnx", "int8", measured("bad.onnx", 0.4, after, float("inf")), FAILED, ("lost -20.000 points",), BAD),
        ("worse.onnx", "fp16", None, FAILED, (f"damaged {NASTY} \x07",), ()),
        ("m.engine", "fp16", None, NOT_RUN, ("no GPU",), ()),
    ):
        (tmp_path / name).write_bytes(name.encode())
        file_spec = spec.replace(precision=precision)
        if precision == "int8":
            write_manifest(tmp_path / name, file_spec, [Origin("onnx", "good.onnx", "f" * 64)], {"calibration": CALIBRATION})
        opened = None if status == NOT_RUN else file_spec
        speed = SPEED.get(name)
        outcomes.append(
            Outcome(name, tmp_path / name, opened, measurement, status, reasons, (), criteria, OPERATING.get(name), speed)
        )
    return Verification(tmp_path / "w.pt", spec, dataset, Limits(), measured("PyTorch", 0.6, before), tuple(outcomes))


@pytest.fixture
def page(found: Verification, tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return write_report(tmp_path / "out", found)
