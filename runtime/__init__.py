"""Detects and evaluates with exported models; this is the package that gets deployed. Needs neither torch nor a GPU."""

import runtime.console.startup  # noqa: F401 - first: it ends a command cleanly that is interrupted while it imports the rest

# isort: split
from runtime.backends.base import Backend
from runtime.backends.open import open_backend
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import CheckFailed, DetectorError, InputError, MissingComponentError, ModelError, OutputError
from runtime.media.video import read_video
from runtime.spec import ModelSpec
from runtime.streaming.detection_queue import DetectionQueue

__all__ = [
    "Backend",
    "CheckFailed",
    "DetectionQueue",
    "Detections",
    "Detector",
    "DetectorError",
    "InputError",
    "MissingComponentError",
    "ModelError",
    "ModelSpec",
    "OutputError",
    "open_backend",
    "read_video",
]
