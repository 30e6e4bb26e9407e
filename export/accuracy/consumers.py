"""Emulates how other programs prepare images, to measure what that costs in AP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.accuracy.measure import Measurement, measure
from runtime.backends.base import Backend
from runtime.datasets.dataset import Dataset
from runtime.evaluation.bootstrap import Bounds, compare
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)


def common_std(spec: ModelSpec) -> float:
    """Returns the one deviation, of pixel values in 0-1, of programs that have none a channel: the harmonic mean of all."""
    return len(spec.std) / sum(1 / deviation for deviation in spec.std)


def _one_factor(spec: ModelSpec) -> ModelSpec:
    return spec.replace(std=(common_std(spec),) * 3)


def _deepstream(spec: ModelSpec) -> ModelSpec:
    return _one_factor(spec).replace(pad_value=0.0)


def _opencv(spec: ModelSpec) -> ModelSpec:
    return _one_factor(spec).replace(resize="stretch")


def _triton(spec: ModelSpec) -> ModelSpec:
    return spec


CONSUMERS: dict[str, Callable[[ModelSpec], ModelSpec]] = {
    "deepstream": _deepstream,  # as `export.deepstream` configures nvinfer: one factor, black border
    "opencv": _opencv,  # cv2.dnn.blobFromImage: one factor, aspect ratio not kept
    "triton": _triton,  # the client is `Detector`, which prepares images as ever
}
"""Spec by which each program prepares images, from the model's own."""


@dataclass(frozen=True)
class ConsumerLoss:
    """ΔAP of a file in another program's hands.

    Attributes:
        consumer: one of `CONSUMERS`.
        measurement: of the file with that program's preprocessing.
        bounds: of ΔAP against PyTorch with the model's own, in points.
    """

    consumer: str
    measurement: Measurement
    bounds: Bounds

    def __str__(self) -> str:
        delta, low, high = self.bounds.estimate, self.bounds.lower, self.bounds.upper
        return f"prepared as {self.consumer} does: ΔAP {delta:+.2f} ({low:+.2f} to {high:+.2f}), no part of the verdict"


class ConsumerBackend:
    """Runs a model on images that are prepared as a consumer does; closing it is up to the backend's owner.

    Args:
        backend: runs the model.
        consumer: one of `CONSUMERS`.
    """

    def __init__(self, backend: Backend, consumer: str) -> None:
        self._backend = backend
        self.spec = CONSUMERS[consumer](backend.spec)
        self.batch_size = backend.batch_size
        self.title = f"{backend.title}, prepared as {consumer} does"

    def infer(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Runs the model; see `Backend.infer`."""
        return self._backend.infer(images)

    def close(self) -> None:
        """Closes nothing."""

    def __enter__(self) -> ConsumerBackend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def measure_consumers(
    consumers: Sequence[str],
    name: str,
    path: Path,
    backend: Backend,
    reference: Measurement,
    dataset: Dataset,
    groups: NDArray[np.intp],
    confidence: float,
) -> tuple[ConsumerLoss, ...]:
    """Scores a file once more for each consumer.

    Args:
        consumers: of `CONSUMERS`.
        name: what the table calls the file.
        path: of the file.
        backend: runs it.
        reference: measurement of the weights in PyTorch.
        dataset: the split.
        groups: copies of an image among the images, see `runtime.evaluation.bootstrap.draw_weights`.
        confidence: of the bounds.
    """
    found = []
    for consumer in consumers:
        title = f"{name}, {consumer}"
        log.info("scoring %s", title)
        prepared = measure(title, ConsumerBackend(backend, consumer), path, dataset)
        delta = compare(reference.evaluation.matches, prepared.evaluation.matches, groups=groups)
        found.append(ConsumerLoss(consumer, prepared, delta.bounds(confidence)))
    return tuple(found)
