"""Builds detectors from their parts: `build_model`."""

from train.model.build import build_model
from train.model.detector import DetectorModel
from train.model.retinanet import RetinaNet
from train.model.yolo import YOLOv3, decode_maps

__all__ = ["DetectorModel", "RetinaNet", "YOLOv3", "build_model", "decode_maps"]
