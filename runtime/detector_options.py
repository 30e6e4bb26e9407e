"""Options of the command lines that decide which detections a model gives."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Optional

from runtime import cli
from runtime.backends.open import open_backend
from runtime.backends.triton import served_address
from runtime.detector import Detector, default_score_threshold
from runtime.files import PathLike, sha256
from runtime.results.classes import parse_classes
from runtime.spec import ModelSpec
from runtime.streaming.statistics import RunStatistics

_MOST = 100
"""Detections kept per image by default."""


@dataclass(frozen=True)
class DetectorOptions:
    """What a `Detector` is opened with.

    Attributes:
        engine: path of the model file, or address of a served model.
        backend: see `open_backend`.
        conf: lowest score, in [0, 1]; None for the model's own.
        iou: threshold of NMS, in (0, 1]; None for the model's own.
        max_detections: kept per image.
        classes: names or ids of the only classes that are detected, separated by commas; None for all.
    """

    engine: PathLike
    backend: str = "auto"
    conf: Optional[float] = None
    iou: Optional[float] = None
    max_detections: int = _MOST
    classes: Optional[str] = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> DetectorOptions:
        """Takes what `cli.add_model` and `add_detector` have parsed."""
        names = ("engine", "backend", "conf", "iou", "max_detections", "classes")
        return cls(**{name: getattr(options, name) for name in names})

    def open(self, statistics: Optional[RunStatistics] = None, threads: Optional[int] = None) -> Detector:
        """Opens the model.

        Args:
            statistics: see `Detector`.
            threads: see `open_backend`.

        Raises:
            DetectorError: see `open_backend`, `Detector` and `parse_classes`.
        """
        backend = open_backend(self.engine, self.backend, threads)
        try:
            return Detector(
                backend,
                score_threshold=self.conf,
                iou_threshold=self.iou,
                max_detections=self.max_detections,
                class_ids=None if self.classes is None else parse_classes(self.classes, backend.spec.class_names),
                statistics=statistics,
            )
        except BaseException:
            backend.close()
            raise

    def settings(self, spec: ModelSpec) -> dict[str, Any]:
        """Returns what decides the results, so that a run which is resumed goes on with the same."""
        address = served_address(self.engine)
        return {
            "model": sha256(self.engine) if address is None else f"{address} {spec.source_sha256}",
            "score threshold": default_score_threshold(spec) if self.conf is None else self.conf,
            "IoU threshold": spec.nms_threshold if self.iou is None else self.iou,
            "max detections": self.max_detections,
            "classes": self.classes,
        }


def add_detector(parser: argparse.ArgumentParser) -> None:
    """Adds the thresholds and classes of a `Detector` to a command; the model itself is added by `cli.add_model`."""
    cli.add_conf(parser)
    parser.add_argument("--iou", type=cli.probability, help="NMS threshold (default: the model's own, 0.6 in the paper)")
    parser.add_argument("--max-detections", type=cli.positive, default=_MOST, help=f"per image (default: {_MOST})")
    parser.add_argument("--classes", help="detect only these: names or ids, separated by commas (default: all)")
