"""Deployment side of the detector: preprocess, run, decode, suppress, measure. Needs neither torch nor a GPU."""

from runtime.backend import Backend
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import CheckFailed, DetectorError, InputError, MissingComponentError, ModelError
from runtime.opening import open_backend
from runtime.spec import ModelSpec

__all__ = [
    "Backend",
    "CheckFailed",
    "Detections",
    "Detector",
    "DetectorError",
    "InputError",
    "MissingComponentError",
    "ModelError",
    "ModelSpec",
    "open_backend",
]
