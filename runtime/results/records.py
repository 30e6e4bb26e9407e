"""Converts detections to plain values: JSON records, rows of a table, YOLO's lines, COCO's records. Nothing else does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np

from runtime.detections import Detections
from runtime.ops import boxes as box_ops
from runtime.ops.image import Image

Record = dict[str, Any]
"""What was found in one image or frame, see `to_record`."""

ROW_COLUMNS = ("source", "frame", "class_id", "class_name", "score", "x1", "y1", "x2", "y2")


def to_record(
    source: str,
    image: Image,
    found: Detections,
    class_names: Sequence[str],
    *,
    frame: Optional[int] = None,
    time: Optional[float] = None,
) -> Record:
    """Returns plain values for a JSON line: `source`, `width`, `height`, `detections`, and `frame` and `time` where given.

    Args:
        source: name of the image, video or stream.
        image: uint8 BGR `[H, W, 3]`, whose size is recorded.
        found: detections in pixels of the image.
        class_names: by class id.
        frame: its number, from 0.
        time: when a camera or stream delivered it, in seconds since 1970 (UTC).
    """
    record: Record = {
        "source": source,
        "width": image.shape[1],
        "height": image.shape[0],
        "detections": found.to_dicts(class_names),
    }
    if frame is not None:
        record["frame"] = frame
    if time is not None:
        record["time"] = round(time, 3)
    return record


def to_rows(record: Record) -> Iterator[tuple[Any, ...]]:
    """Yields a row of `ROW_COLUMNS` for each detection of a record; `frame` is empty for an image."""
    for item in record["detections"]:
        yield record["source"], record.get("frame", ""), item["class_id"], item["class_name"], item["score"], *item["box"]


def to_yolo(image: Image, found: Detections) -> str:
    """Returns YOLO's lines `class x y width height score`; center and sides are shares of the image's, in [0, 1]."""
    height, width = image.shape[:2]
    boxes = box_ops.xyxy_to_cxcywh(found.boxes.astype(np.float64)) / (width, height, width, height)
    return "".join(
        f"{class_id} {x:.6f} {y:.6f} {w:.6f} {h:.6f} {score:.5f}\n"
        for class_id, (x, y, w, h), score in zip(found.class_ids.tolist(), boxes.tolist(), found.scores.tolist())
    )


def to_coco_results(image_id: int, found: Detections, category_ids: Sequence[int]) -> list[Record]:
    """Converts one image's detections to COCO result records; bbox is (left, top, width, height) in original pixels."""
    boxes = box_ops.xyxy_to_xywh(found.boxes.astype(np.float64)).tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[class_id], "bbox": box, "score": confidence}
        for box, confidence, class_id in zip(boxes, found.scores.tolist(), found.class_ids.tolist())
    ]


def to_detections(record: Record) -> Detections:
    """Returns the detections of a record."""
    items = record["detections"]
    return Detections.from_arrays(
        [item["box"] for item in items], [item["score"] for item in items], [item["class_id"] for item in items]
    )
