"""Chooses the images that show best what each file changed, and encodes them for the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2

from export.accuracy.box_changes import KEPT, Box, match_detections
from export.accuracy.gate import Verification
from export.report.report_data import detections_by_image
from runtime.datasets.dataset import LabeledImage
from runtime.errors import InputError
from runtime.ops.image import Image

_COUNT = 6
_LONGEST_SIDE = 960
_QUALITIES = (82, 60, 40, 20, 5)
_MAX_BYTES = 200_000
"""Of one JPEG: six of them leave a page far below 5 MB, whatever the images."""
LABELED = "labeled"
"""Kind of a box that is an object's label, not a detection."""


@dataclass(frozen=True)
class ShownImage:
    """An image and what each model found in it.

    Attributes:
        name: of its file.
        width: in pixels of the original, which the boxes are in.
        height: likewise.
        uri: JPEG as a `data:` address.
        boxes: by model name, the reference first.
        objects: labeled objects, boxes of the kind `labeled`.
        class_names: by category id.
    """

    name: str
    width: int
    height: int
    uri: str
    boxes: Mapping[str, list[Box]]
    objects: list[Box]
    class_names: Mapping[int, str]


def choose_images(found: Verification) -> list[ShownImage]:
    """Chooses the readable images with most changed detections in any file, then those with most detections."""
    detections = detections_by_image(found)
    reference = next(iter(detections.values()))

    def boxes(image_id: int) -> dict[str, list[Box]]:
        before = reference.get(image_id, [])
        return {name: match_detections(before, of.get(image_id, [])) for name, of in detections.items()}

    def interest(entry: LabeledImage) -> tuple[int, int]:
        every = [box for items in boxes(entry.image_id).values() for box in items]
        return sum(box.kind != KEPT for box in every), len(every)

    shown: list[ShownImage] = []
    class_names = dict(zip(found.dataset.category_ids, found.dataset.class_names))
    for entry in sorted(found.dataset.images, key=interest, reverse=True):
        if len(shown) == _COUNT:
            break
        try:
            uri = jpeg_uri(entry.read())
        except InputError:  # already named by the evaluation
            continue
        found_boxes, objects = boxes(entry.image_id), _labeled_objects(entry, found.dataset.category_ids)
        shown.append(ShownImage(entry.path.name, entry.width, entry.height, uri, found_boxes, objects, class_names))
    return shown


def _labeled_objects(entry: LabeledImage, category_ids: Sequence[int]) -> list[Box]:
    """Returns the objects that count in the evaluation."""
    found = []
    for (left, top, right, bottom), class_id, crowd in zip(entry.boxes.tolist(), entry.class_ids, entry.crowd):
        if not crowd:
            found.append(Box((left, top, right - left, bottom - top), category_ids[class_id], 1.0, None, LABELED))
    return found


def jpeg_uri(image: Image) -> str:
    """Encodes a uint8 BGR image as a JPEG `data:` address, reduced to at most 960 pixels a side and 200 kB."""
    scale = _LONGEST_SIDE / max(image.shape[:2])
    if scale < 1:
        size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(image.dtype)
    for quality in _QUALITIES:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if data.size <= _MAX_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
