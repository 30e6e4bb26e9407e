"""Measures a model's accuracy, size and speed, the same way for the weights and for every exported file."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.onnx_export import parity
from runtime.backends.base import Backend
from runtime.datasets.dataset import Dataset
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.evaluation.bootstrap import Bounds
from runtime.evaluation.coco import Evaluation, evaluate
from runtime.ops.image import Image
from runtime.ops.preprocess import preprocess

_COMPARED = 4
"""Number of images whose raw outputs are compared with the reference's."""
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_WORST_WIDTH, _BOUNDS_WIDTH = 24, 18
_VISIBLE = 0.005  # the least points of AP that print as 0.01


@dataclass(frozen=True)
class Measurement:
    """Accuracy, size and speed of one model.

    Attributes:
        name: what the table calls the model.
        evaluation: its accuracy.
        size: of its file in bytes.
        milliseconds: median time of one image, preprocessing to NMS, batch 1.
        difference: largest |a - b| / max |a| between the reference's outputs and its own, on a few images, each side
            preprocessing them by its own spec (see `parity.compare_outputs`). None where there is no reference.
    """

    name: str
    evaluation: Evaluation
    size: int
    milliseconds: float
    difference: float | None = None

    def delta_ap(self, reference: Measurement) -> float:
        """ΔAP against the reference in points; negative is a loss."""
        return (self.evaluation.ap - reference.evaluation.ap) * 100


def measure(name: str, backend: Backend, file: Path, dataset: Dataset, reference: Backend | None = None) -> Measurement:
    """Scores and times a model on a split, at the score threshold of its own spec (0.01 in the paper).

    Args:
        name: what the table calls the model.
        backend: runs it.
        file: its file, for the size.
        dataset: the split.
        reference: runs what it was made from, to compare raw outputs with.
    """
    detector = Detector(backend, score_threshold=backend.spec.score_threshold)
    times: list[float] = []

    def predict(images: Sequence[Image]) -> list[Detections]:
        start = time.perf_counter()
        found = detector(images)
        times.append((time.perf_counter() - start) * 1e3)
        return found

    difference = tensor_difference(reference, backend, dataset) if reference else None
    result = evaluate(predict, dataset, backend.spec.class_names)
    return Measurement(name, result, file.stat().st_size, statistics.median(times), difference)


def tensor_difference(reference: Backend, other: Backend, dataset: Dataset) -> float:
    """Returns the largest relative difference of any output on the split's first readable images; infinite for a NaN.

    Args:
        reference: a backend that gives out raw maps; see `parity.compare_outputs`.
        other: the backend to compare with it.
        dataset: the split.
    """
    found = [0.0]
    for image in first_images(dataset, _COMPARED):
        mine, theirs = (preprocess(image, backend.spec)[0] for backend in (reference, other))
        batch = np.resize(theirs, (other.batch_size or 1, *theirs.shape))
        outputs = [output[:1] for output in other.infer(batch)]
        differences = parity.compare_outputs(reference.spec, reference.infer(mine[None]), other.spec, outputs)
        found.append(parity.worst(differences).relative)
    return max(found)


def first_images(dataset: Dataset, count: int) -> list[Image]:
    """Reads the split's first readable images, at most `count`."""
    images: list[Image] = []
    for entry in dataset.images:
        if len(images) == count:
            break
        try:
            images.append(entry.read())
        except InputError:  # the evaluation reports it
            continue
    return images


def worst_class(reference: Measurement, measurement: Measurement) -> tuple[str, float] | None:
    """Returns the class that lost most AP and its ΔAP in points (negative); None where no class lost 0.01 points."""
    before, after = reference.evaluation.per_class, measurement.evaluation.per_class
    deltas = {name: (after[name] - ap) * 100 for name, ap in before.items() if ap >= 0}
    name = min(deltas, key=deltas.__getitem__, default=None)
    return None if name is None or deltas[name] > -_VISIBLE else (name, deltas[name])


def table(measurements: Sequence[Measurement], bounds: Mapping[str, Bounds]) -> str:
    """Formats measurements as a table: AP in percent; ΔAP against the first one, and of the worst class, in points.

    Args:
        measurements: the reference first.
        bounds: of ΔAP, by the measurement's name, where they are known.
    """
    reference = measurements[0]
    width = max(len("model"), *(len(item.name) for item in measurements)) + 2
    columns = ("AP", "AP50", "AP75", "small", "medium", "large")
    heading = f"{'model':{width}}" + "".join(f"{column:>8}" for column in columns)
    heading += f"{'ΔAP':>9}  {'lower, upper':{_BOUNDS_WIDTH}}{'worst class':{_WORST_WIDTH}}"
    heading += f"{'size':>11}{'ms/image':>10}{'max diff':>10}"
    lines = [heading]
    for item in measurements:
        worst = worst_class(reference, item) if item is not reference else None
        lines.append(
            f"{item.name:{width}}"
            + "".join(_percent(item.evaluation.metrics[name]) for name in _METRICS)
            + f"{item.delta_ap(reference):+9.3f}  {_bounded(bounds.get(item.name)):{_BOUNDS_WIDTH}}"
            + f"{_named(worst):{_WORST_WIDTH}}"
            + f"{item.size / 1e6:8.2f} MB{item.milliseconds:10.1f}"
            + (f"{'-':>10}" if item.difference is None else f"{item.difference:10.1e}")
        )
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{value * 100:8.2f}" if value >= 0 else f"{'–':>8}"


def _bounded(bounds: Bounds | None) -> str:
    return "-" if bounds is None else f"{bounds.lower:+.3f}, {bounds.upper:+.3f}"


def _named(worst: tuple[str, float] | None) -> str:
    if worst is None:
        return "-"
    delta = f"{worst[1]:+.2f}"
    return f"{worst[0][: _WORST_WIDTH - len(delta) - 2]} {delta}"
