"""One small model in every form that a backend takes, and the backends that run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.engine_files import write_precisions
from export.onnx_export.tracer import write_onnx
from runtime.backends.base import Backend
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from runtime.spec import ModelSpec
from tests.support.small_models import CLASSES, settled, tiny
from train.model import DetectorModel
from train.spec import model_spec
from train.torch_backend import TorchBackend


@dataclass(frozen=True)
class Subject:
    """One model in every form that a backend takes.

    Attributes:
        model: in PyTorch.
        spec: of the model.
        files: ONNX files of any batch size, by precision.
        fixed: an ONNX file with a batch of 2.
    """

    model: DetectorModel
    spec: ModelSpec
    files: dict[str, Path]
    fixed: Path


@dataclass(frozen=True)
class Case:
    """A backend and how to open the subject in it.

    Attributes:
        open: opens the subject.
        package: that it needs.
        opens_files: whether it owns the model, and closes it.
        calls: that it makes in a second or two.
    """

    open: Callable[[Subject], Backend]
    package: str
    opens_files: bool = True
    calls: int = 3000


CASES = {
    "onnxruntime": Case(lambda subject: OrtBackend(subject.files["fp32"]), "onnxruntime"),
    "openvino": Case(lambda subject: OpenVinoBackend(subject.files["fp32"]), "openvino"),
    "torch": Case(lambda subject: TorchBackend(subject.model, subject.spec), "torch", opens_files=False, calls=300),
}


def make_subject(folder: Path) -> Subject:
    """Makes a tiny model and exports it to `folder` in every precision."""
    torch.manual_seed(0)
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    files = write_precisions(model, spec, folder)
    fixed = folder / "fixed.onnx"
    write_onnx(model, spec, fixed, batch=2)
    return Subject(model.eval(), spec, files, fixed)


def expected(subject: Subject, images: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [level.numpy() for level in subject.model.maps(torch.from_numpy(images))]


def distance(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Largest difference of any level, as a share of the level's largest value."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, wanted))
