"""Deployment side of the detector: preprocess, run, decode, suppress, measure. Needs neither torch nor a GPU."""

from runtime.backend import Backend
from runtime.detection_queue import DetectionQueue
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import CheckFailed, DetectorError, InputError, MissingComponentError, ModelError
from runtime.opening import open_backend
from runtime.spec import ModelSpec
from runtime.video import read_video

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
    "open_backend",
    "read_video",
]
