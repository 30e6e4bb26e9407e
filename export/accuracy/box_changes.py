"""Matches the detections of an exported file with those of its reference, and tells kept ones from changed ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.ops import boxes as box_ops

SHOWN_SCORE = 0.25
"""Threshold of weights that store none: the default of `runtime.detect`."""
MIN_IOU = 0.5
MIN_SCORE_CHANGE = 0.05

KEPT, RESCORED, APPEARED, VANISHED = "kept", "rescored", "appeared", "vanished"
KINDS = (KEPT, RESCORED, APPEARED, VANISHED)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Box:
    """One detection and its fate in the conversion.

    Attributes:
        box: (left, top, width, height) in pixels of the image.
        category_id: as in the dataset.
        score: after the conversion; that of the reference for a box that vanished.
        before: score of the reference; None for a box that appeared.
        kind: `kept`, `rescored` (by more than `MIN_SCORE_CHANGE`), `appeared` or `vanished`.
    """

    box: tuple[float, float, float, float]
    category_id: int
    score: float
    before: float | None
    kind: str


def by_image(results: Iterable[Record], threshold: float) -> dict[int, list[Record]]:
    """Groups the COCO result records of at least a score by image id, best first."""
    found: dict[int, list[Record]] = defaultdict(list)
    for record in results:
        if record["score"] >= threshold:
            found[record["image_id"]].append(record)
    return {image_id: sorted(records, key=lambda record: -record["score"]) for image_id, records in found.items()}


def match_detections(reference: Sequence[Record], other: Sequence[Record]) -> list[Box]:
    """Matches one image's detections, best reference first, each with the free one of its class that overlaps it most.

    Args:
        reference: COCO result records of one image, best first.
        other: those of the exported file, best first.

    Returns:
        A box for every record of the reference, then the boxes that appeared.
    """
    free = list(other)
    found = []
    for record in reference:
        match = _best_match(record, free)
        if match is None:
            found.append(_box(record, record["score"], VANISHED))
            continue
        free.remove(match)
        moved = abs(match["score"] - record["score"]) > MIN_SCORE_CHANGE
        found.append(_box(match, record["score"], RESCORED if moved else KEPT))
    return found + [_box(record, None, APPEARED) for record in free]


def _best_match(record: Record, free: Sequence[Record]) -> Record | None:
    alike = [other for other in free if other["category_id"] == record["category_id"]]
    if not alike:
        return None
    ious = box_ops.iou(_corners([record]), _corners(alike))[0]
    best = int(ious.argmax())
    return alike[best] if ious[best] >= MIN_IOU else None


def overlaps(first: Sequence[float], second: Sequence[float]) -> bool:
    """Tells whether two boxes (left, top, width, height) have an IoU of at least `MIN_IOU`."""
    return bool(box_ops.iou(_corners([{"bbox": first}]), _corners([{"bbox": second}]))[0, 0] >= MIN_IOU)


def _corners(records: Sequence[Record]) -> box_ops.Floats:
    boxes = np.array([record["bbox"] for record in records], np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _box(record: Record, before: float | None, kind: str) -> Box:
    left, top, width, height = record["bbox"]
    return Box((left, top, width, height), record["category_id"], record["score"], before, kind)
