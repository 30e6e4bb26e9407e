"""What each conversion step did to a model: accuracy, size, speed, measured the same way for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.onnx_export import parity
from runtime.backends.base import Backend
from runtime.datasets.dataset import Dataset
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.evaluation.coco import Evaluation, evaluate
from runtime.media.image import Image
from runtime.ops.preprocess import preprocess

_COMPARED = 4
"""Images whose raw outputs are compared with the reference's."""
_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_WORST_WIDTH = 24
_VISIBLE = 0.005  # points that are written as 0.01


@dataclass(frozen=True)
class Step:
    """One step of the road.

    Attributes:
        name: what to call it. evaluation: its accuracy.
        size: of its file in bytes. milliseconds: median of one image, preprocessing to NMS, batch 1.
        difference: largest |a - b| / max |a| of its outputs to the reference's, on a few images, each side preparing them
            as its own description says; of raw maps, or of candidates as `parity.compare_outputs` does; None where there was
            nothing to compare with.
    """

    name: str
    evaluation: Evaluation
    size: int
    milliseconds: float
    difference: float | None = None

    def change(self, reference: Step) -> float:
        """Points of AP gained on the reference; negative for a loss."""
        return (self.evaluation.ap - reference.evaluation.ap) * 100


def measure_step(name: str, backend: Backend, file: Path, dataset: Dataset, reference: Backend | None = None) -> Step:
    """Score and time a model on a split, at the score threshold of its own description (0.01 in the paper).

    Args:
        reference: what it was made from, to compare raw outputs with.
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
    return Step(name, result, file.stat().st_size, statistics.median(times), difference)


def tensor_difference(reference: Backend, other: Backend, dataset: Dataset) -> float:
    """The largest relative difference of any output on the split's first readable images; infinite for a NaN.

    Args:
        reference: one that gives out raw maps; see `parity.compare_outputs`.
    """
    found = [0.0]
    for image in _first_images(dataset):
        mine, theirs = (preprocess(image, backend.spec)[0] for backend in (reference, other))
        batch = np.resize(theirs, (other.batch_size or 1, *theirs.shape))
        outputs = [output[:1] for output in other.infer(batch)]
        differences = parity.compare_outputs(reference.spec, reference.infer(mine[None]), other.spec, outputs)
        found.append(parity.worst(differences).relative)
    return max(found)


def _first_images(dataset: Dataset) -> list[Image]:
    images: list[Image] = []
    for entry in dataset.images:
        if len(images) == _COMPARED:
            break
        try:
            images.append(entry.read())
        except InputError:  # the evaluation names it, once
            continue
    return images


def worst_class(reference: Step, step: Step) -> tuple[str, float] | None:
    """The class that lost most AP and its change in points, which is negative; None where none lost so much as 0.01."""
    before, after = reference.evaluation.per_class, step.evaluation.per_class
    changes = {name: (after[name] - ap) * 100 for name, ap in before.items() if ap >= 0}
    name = min(changes, key=changes.__getitem__, default=None)
    return None if name is None or changes[name] > -_VISIBLE else (name, changes[name])


def table(steps: Sequence[Step]) -> str:
    """The steps for reading: AP in percent, its change against the first step in points, the worst class's likewise."""
    width = max(len("step"), *(len(step.name) for step in steps)) + 2
    columns = ("AP", "AP50", "AP75", "small", "medium", "large")
    heading = f"{'step':{width}}" + "".join(f"{column:>8}" for column in columns)
    lines = [heading + f"{'change':>9}  {'worst class':{_WORST_WIDTH}}{'size':>11}{'ms/image':>10}{'max diff':>10}"]
    for step in steps:
        worst = worst_class(steps[0], step) if step is not steps[0] else None
        lines.append(
            f"{step.name:{width}}"
            + "".join(_percent(step.evaluation.metrics[name]) for name in _FIGURES)
            + f"{step.change(steps[0]):+9.3f}  {_named(worst):{_WORST_WIDTH}}"
            + f"{step.size / 1e6:8.2f} MB{step.milliseconds:10.1f}"
            + (f"{'-':>10}" if step.difference is None else f"{step.difference:10.1e}")
        )
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{value * 100:8.2f}" if value >= 0 else f"{'-':>8}"


def _named(worst: tuple[str, float] | None) -> str:
    if worst is None:
        return "-"
    change = f"{worst[1]:+.2f}"
    return f"{worst[0][: _WORST_WIDTH - len(change) - 2]} {change}"
