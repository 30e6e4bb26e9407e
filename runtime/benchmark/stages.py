"""Times each stage of one batch, from image files to detections, by the functions that `Detector` calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.detections import Detections
from runtime.detector import Detector, as_batch
from runtime.media.image import read_image
from runtime.ops.preprocess import preprocess

STAGES = ("load", "preprocess", "copy", "infer", "decode", "NMS")
"""In the order in which an image goes through them."""


@runtime_checkable
class CopyingBackend(Backend, Protocol):
    """A backend that computes in device memory and can time the copies there and back."""

    def copy(self, images: NDArray[Any]) -> None:
        """Does all that `infer` does but compute: copies the input to the device and the outputs back."""


@runtime_checkable
class TimedBackend(Backend, Protocol):
    """A backend that computes on a GPU, whose own clock it can read."""

    def infer_timed(self, images: NDArray[Any]) -> tuple[list[NDArray[np.float32]], float]:
        """Does what `infer` does; returns the milliseconds on the GPU too, copies included, by CUDA events."""

    def compile_at_once(self) -> None:
        """Makes runs from now on as fast as they get after the first of a batch size."""


@dataclass(frozen=True)
class BatchTiming:
    """Times and results of one batch.

    Attributes:
        milliseconds: of the whole batch, by stage; without `copy` where there is none or it is part of `infer`.
        candidates: number of boxes above the score threshold in all images of the batch.
        found: the detections in each image.
        on_gpu: milliseconds of inference and copies on the GPU, by its own clock; None without one.
    """

    milliseconds: dict[str, float]
    candidates: int
    found: list[Detections]
    on_gpu: Optional[float] = None

    @property
    def total(self) -> float:
        """Milliseconds from the files to the detections."""
        return sum(self.milliseconds.values())


def run(backend: Backend, detector: Detector, files: Sequence[Path]) -> BatchTiming:
    """Detects in image files as one batch.

    Copying is timed apart and subtracted from inference, since it cannot be seen within one CUDA graph.

    Args:
        backend: takes batches of this size.
        detector: a detector of `backend`.
        files: images.

    Raises:
        InputError: a file is not an image.
        ModelError: the model failed.
    """
    clock = _Clock()
    images = [read_image(file) for file in files]
    clock.stop("load")
    inputs, geometries = zip(*(preprocess(image, backend.spec) for image in images))
    batch = as_batch(inputs)
    clock.stop("preprocess")
    outputs, on_gpu = backend.infer_timed(batch) if isinstance(backend, TimedBackend) else (backend.infer(batch), None)
    clock.stop("infer")
    candidates = [detector.candidates([output[i] for output in outputs]) for i in range(len(files))]
    clock.stop("decode")
    found = [detector.select(boxes, geometry)[0] for boxes, geometry in zip(candidates, geometries)]
    clock.stop("NMS")
    if isinstance(backend, CopyingBackend):
        backend.copy(batch)
        clock.stop("copy")
        clock.milliseconds["infer"] -= clock.milliseconds["copy"]
    return BatchTiming(clock.milliseconds, sum(len(boxes.scores) for boxes in candidates), found, on_gpu)


class _Clock:
    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Ends a stage and begins the next one."""
        now = time.perf_counter()
        self.milliseconds[stage] = (now - self._start) * 1e3
        self._start = now
