"""What each conversion step did to a model: accuracy, size, speed, measured the same way for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.backend import Backend
from runtime.dataset import Dataset
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.evaluation import Evaluation, evaluate
from runtime.images import Image


@dataclass(frozen=True)
class Step:
    """One step of the road.

    Attributes:
        name: what to call it. evaluation: its accuracy.
        size: of its file in bytes. milliseconds: median of one picture, preprocessing to NMS, batch 1.
    """

    name: str
    evaluation: Evaluation
    size: int
    milliseconds: float


def measure_step(name: str, backend: Backend, file: Path, dataset: Dataset) -> Step:
    """Score and time a model on a split, at the score threshold of its own description (0.01 in the paper)."""
    detector = Detector(backend, score_threshold=backend.spec.score_threshold)
    times: list[float] = []

    def predict(pictures: Sequence[Image]) -> list[Detections]:
        start = time.perf_counter()
        found = detector(pictures)
        times.append((time.perf_counter() - start) * 1e3)
        return found

    result = evaluate(predict, dataset, backend.spec.class_names)
    return Step(name, result, file.stat().st_size, statistics.median(times))


def table(steps: Sequence[Step]) -> str:
    """The steps for reading: AP in percent, its change against the first step in points of AP."""
    first = steps[0].evaluation.ap
    lines = [f"{'step':14}{'AP':>8}{'AP50':>8}{'change':>9}{'size':>11}{'ms/image':>10}"]
    for step in steps:
        change = (step.evaluation.ap - first) * 100
        lines.append(
            f"{step.name:14}{step.evaluation.ap * 100:8.2f}{step.evaluation.ap50 * 100:8.2f}{change:+9.3f}"
            f"{step.size / 1e6:8.2f} MB{step.milliseconds:10.1f}"
        )
    return "\n".join(lines)
