"""Metrics of a server in Prometheus' format, in a registry of their own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts and times of one server. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter("detector_requests", "Requests answered", ("path", "status"), registry=self._registry)
        self._seconds = Histogram(
            "detector_request_seconds", "Time of a request", ("path",), buckets=_SECONDS, registry=self._registry
        )
        self._stages = Histogram(
            "detector_stage_seconds",
            "Time of a stage: decode of an image, the others of a batch",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram("detector_batch_size", "Images in a run", buckets=_SIZES, registry=self._registry)
        self._detections = Counter("detector_detections", "Detections sent", registry=self._registry)
        self._images = Gauge("detector_images", "Images decoded, waiting or running now", registry=self._registry)

    def watch(self, images: Callable[[], int]) -> None:
        """Has the number of images that are being worked on come from a function."""
        self._images.set_function(images)

    def see_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def see_run(self, size: int, milliseconds: Mapping[str, float]) -> None:
        """Counts a run of the model.

        Args:
            size: number of images.
            milliseconds: by stage.
        """
        self._batches.observe(size)
        for stage, value in milliseconds.items():
            self._stages.labels(stage).observe(value / 1e3)

    def see_detections(self, count: int) -> None:
        """Counts detections that were sent."""
        self._detections.inc(count)

    def time(self, stage: str) -> AbstractContextManager[Any]:
        """Adds the time of the block to a stage."""
        return self._stages.labels(stage).time()

    def text(self) -> bytes:
        """Returns all metrics in `CONTENT_TYPE`."""
        return generate_latest(self._registry)
