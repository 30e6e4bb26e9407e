"""Implements the references of the runtime benchmark: OpenCV's own calls, naive NumPy, and Ultralytics."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.ops.boxes import xyxy_to_cxcywh
from runtime.ops.image import Image
from runtime.ops.preprocess import fit
from runtime.spec import ModelSpec

Floats = NDArray[np.float32]

# The same for every reference and for the runtime.
SIDE = 608
THRESHOLD, IOU, KEPT = 0.01, 0.6, 100


def opencv_preprocess(image: Image, spec: ModelSpec) -> Floats:
    """Computes the network's input float32 `[1, 3, H, W]` with one call of OpenCV's own letterbox."""
    wanted = cv2.dnn.Image2BlobParams()
    wanted.size, wanted.swapRB, wanted.paddingmode = spec.input_size[::-1], True, cv2.dnn.DNN_PMODE_LETTERBOX
    wanted.borderValue = (spec.pad_value,) * 3
    wanted.mean = tuple(255 * value for value in spec.mean)
    wanted.scalefactor = tuple(1 / (255 * value) for value in spec.std)
    return cv2.dnn.blobFromImageWithParams(image, wanted)


def naive_preprocess(image: Image, spec: ModelSpec) -> Floats:
    """Computes the same as `opencv_preprocess` in NumPy, each step written as its formula."""
    geometry = fit(image.shape[1], image.shape[0], spec.input_size, spec.resize)
    left, right, x = _neighbors(geometry.resized_width, image.shape[1])
    top, bottom, y = _neighbors(geometry.resized_height, image.shape[0])
    pixels, x, y = image.astype(np.float32), x[None, :, None], y[:, None, None]
    upper = pixels[top][:, left] * (1 - x) + pixels[top][:, right] * x
    lower = pixels[bottom][:, left] * (1 - x) + pixels[bottom][:, right] * x
    canvas = np.full((*spec.input_size, 3), spec.pad_value, np.float32)
    rows, columns = slice(geometry.pad_y, geometry.pad_y + len(y)), slice(geometry.pad_x, geometry.pad_x + x.shape[1])
    canvas[rows, columns] = upper * (1 - y) + lower * y
    normal = (canvas[..., ::-1] / np.float32(255) - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def _neighbors(size: int, original: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Computes for each resized pixel the two original pixels around it, and its distance in pixels from the first."""
    position = np.clip((np.arange(size) + 0.5) * original / size - 0.5, 0, original - 1)
    first = position.astype(np.int64)
    return first, np.minimum(first + 1, original - 1), (position - first).astype(np.float32)


def naive_decode(maps: Sequence[Floats], spec: ModelSpec) -> tuple[Floats, Floats]:
    """Decodes every anchor to boxes `[N, 4]` xyxy in input pixels and scores `[N, classes]`."""
    parts = []
    for level, raw in enumerate(maps):
        stride, anchors = spec.strides[level], np.array(spec.anchors[level], np.float32)
        t = raw.reshape(len(anchors), 5 + spec.num_classes, *raw.shape[1:]).transpose(0, 2, 3, 1)
        rows, columns = np.mgrid[: raw.shape[1], : raw.shape[2]].astype(np.float32)
        probabilities = 1 / (1 + np.exp(-t[..., 4:]))
        x, y = (1 / (1 + np.exp(-t[..., 0])) + columns) * stride, (1 / (1 + np.exp(-t[..., 1])) + rows) * stride
        w, h = anchors[:, 0, None, None] * np.exp(t[..., 2]), anchors[:, 1, None, None] * np.exp(t[..., 3])
        scores = probabilities[..., :1] * probabilities[..., 1:]
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)
        parts.append((boxes.reshape(-1, 4), scores.reshape(-1, spec.num_classes)))
    boxes, scores = (np.concatenate(values) for values in zip(*parts))
    return boxes, scores


def naive_postprocess(maps: Sequence[Floats], spec: ModelSpec, image: Image) -> Detections:
    """Decodes every anchor and class, filters by score, and runs NMS box by box."""
    boxes, scores = naive_decode(maps, spec)
    best, classes = scores.max(axis=1), scores.argmax(axis=1)
    keep = best >= THRESHOLD
    boxes, best, classes = boxes[keep], best[keep], classes[keep]
    original = fit(image.shape[1], image.shape[0], spec.input_size, spec.resize).to_original(boxes)
    inside = ((original[:, 2:] - original[:, :2]) > 0).all(axis=1)
    boxes, original, best, classes = boxes[inside], original[inside], best[inside], classes[inside]
    kept = naive_nms(boxes, best, classes)[:KEPT]
    return Detections.from_arrays(original[kept], best[kept], classes[kept])


def naive_nms(boxes: Floats, scores: Floats, classes: NDArray[np.int64]) -> list[int]:
    """Runs NMS within each class; returns the indices of the boxes that are kept, best first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(int(first))
        sides = np.minimum(boxes[first, 2:], boxes[rest, 2:]) - np.maximum(boxes[first, :2], boxes[rest, :2])
        shared = np.clip(sides, 0, None).prod(axis=1)
        overlaps = shared / (areas[first] + areas[rest] - shared) > IOU
        order = rest[~(overlaps & (classes[first] == classes[rest]))]
    return kept


class Ultralytics:
    """Ultralytics' letterbox and NMS, with the conversions that its predictor makes around them.

    Raises:
        ImportError: it is not installed, or does not work here; some of its versions raise other errors.
    """

    def __init__(self) -> None:
        threads = cv2.getNumThreads()
        with contextlib.redirect_stdout(sys.stderr):  # it prints a greeting
            with contextlib.suppress(Exception):
                import torchvision  # noqa: F401  # Ultralytics uses its NMS only if it is imported already
            import ultralytics
            from ultralytics.data.augment import LetterBox
            from ultralytics.utils import ops

            try:
                from ultralytics.utils.nms import non_max_suppression
            except ImportError:  # its home until 8.3
                non_max_suppression = ops.non_max_suppression
        cv2.setNumThreads(threads)  # importing Ultralytics sets it to 0 for the whole process
        import torch

        self._torch, self._ops, self._nms = torch, ops, non_max_suppression
        self._letterbox = LetterBox((SIDE, SIDE), auto=False)
        # Its own NMS takes seconds for 5,000 boxes, and gives up on some.
        self.is_quick = sys.modules.get("torchvision") is not None
        self.title = f"Ultralytics {ultralytics.__version__} ({'torchvision' if self.is_quick else 'its own'} NMS)"

    def preprocess(self, image: Image) -> Any:
        """Computes its input, a float tensor `[1, 3, H, W]` in [0, 1], without subtracting a mean."""
        batch = np.stack([self._letterbox(image=image)])[..., ::-1].transpose(0, 3, 1, 2)
        return self._torch.from_numpy(np.ascontiguousarray(batch)).float() / 255

    def predictions(self, maps: Sequence[Floats], spec: ModelSpec) -> Any:
        """Decodes maps to its models' output `[1, 4 + classes, N]`: cxcywh in input pixels and scores of every anchor."""
        boxes, scores = naive_decode(maps, spec)
        rows = np.concatenate([xyxy_to_cxcywh(boxes), scores], axis=1)
        return self._torch.from_numpy(np.ascontiguousarray(rows.T[None]))

    def postprocess(self, predictions: Any, image: Image) -> Detections:
        """Filters by score, runs NMS, and maps the boxes to the image's own pixels."""
        found = self._nms(predictions, THRESHOLD, IOU, max_det=KEPT)[0]
        found[:, :4] = self._ops.scale_boxes((SIDE, SIDE), found[:, :4], image.shape)
        found = found.cpu().numpy()
        return Detections.from_arrays(found[:, :4], found[:, 4], found[:, 5].astype(np.int64))


def find_ultralytics() -> Ultralytics | None:
    """Opens Ultralytics; None with a note on stderr if it cannot be imported."""
    try:
        return Ultralytics()
    except Exception as error:  # a broken installation may raise anything
        print(f"without Ultralytics: {type(error).__name__}: {error}", file=sys.stderr)
        return None
