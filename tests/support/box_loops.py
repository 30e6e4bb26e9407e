"""Random labeled boxes and detections near them, and loops that match them: the slow reference of curves and matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset

Box = Sequence[float]
Record = dict[str, Any]
IMAGES = 10
CATEGORIES = ((1, "dot"), (3, "ring"), (2, "none"))
IDS = range(1, IMAGES + 1)


def made_up(make_coco: Callable[..., Path], rng: np.random.Generator) -> Dataset:
    """Images with objects of two of three classes, some of them crowds, many of them overlapping."""
    boxes = []
    for image_id in IDS:
        for _ in range(rng.integers(0, 7)):
            side = rng.uniform(20, 70, 2)
            crowd = {"iscrowd": int(rng.random() < 0.2)}
            boxes.append((image_id, int(rng.choice([1, 3])), (*rng.uniform(0, 120 - side), *side), crowd))
    return open_dataset(make_coco([(i, 120, 120, 0) for i in IDS], boxes, CATEGORIES), "val")


def detected(dataset: Dataset, rng: np.random.Generator) -> list[Record]:
    """Detections near the objects, of the right class or not, and elsewhere; scores are coarse, so that many are equal."""
    found = []
    for item in [*dataset.annotations] * 2:
        box = np.array(item["bbox"]) * rng.uniform(0.85, 1.15, 4)
        category = item["category_id"] if rng.random() < 0.7 else int(rng.choice([1, 2, 3]))
        found.append({"image_id": item["image_id"], "category_id": category, "bbox": box.tolist()})
    for _ in range(15):
        box = [*rng.uniform(0, 90, 2), *rng.uniform(5, 60, 2)]
        found.append({"image_id": int(rng.choice(IDS)), "category_id": int(rng.choice([1, 2, 3])), "bbox": box})
    return [{**item, "score": round(float(rng.uniform(0.05, 1)), 1)} for item in found]


def common(one: Box, other: Box) -> float:
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


def iou(one: Box, other: Box) -> float:
    return common(one, other) / (one[2] * one[3] + other[2] * other[3] - common(one, other))


def pairs(labels: list[Record], found: list[Record]) -> tuple[list[tuple[Optional[Record], Optional[Record]]], int]:
    """The slow reference for one image: (object or None, detection or None) of everything, and the number left to crowds."""
    free = [item for item in labels if not item["iscrowd"]]
    crowds = [item for item in labels if item["iscrowd"]]
    result: list[tuple[Optional[Record], Optional[Record]]] = []
    in_crowd = 0
    for detection in sorted(found, key=lambda item: -item["score"]):
        box = detection["bbox"]
        best = None
        for item in free:
            if iou(box, item["bbox"]) >= 0.5 and (best is None or iou(box, item["bbox"]) > iou(box, best["bbox"])):
                best = item
        if best is not None:
            free.remove(best)
            result.append((best, detection))
        elif any(common(box, crowd["bbox"]) >= 0.5 * box[2] * box[3] for crowd in crowds):
            in_crowd += 1
        else:
            result.append((None, detection))
    return result + [(item, None) for item in free], in_crowd
