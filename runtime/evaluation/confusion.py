"""Counts which class detections have on the objects of each class: the confusion matrix at a score threshold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.dataset import Dataset
from runtime.evaluation.operating_point import IOU
from runtime.ops import boxes as box_ops

Floats = NDArray[np.float64]
Record = dict[str, Any]
BACKGROUND = "background"
_NOTHING, _IN_CROWD = -1, -2  # in place of the index of an object


def confusion_matrix(
    dataset: Dataset, results: Sequence[Record], image_ids: Sequence[int], threshold: float, iou: float = IOU
) -> Floats:
    """Matches detections with objects of any class and counts the pairs of classes.

    In each image, from the best score down, a detection takes the object of the highest IoU that is still free, if that IoU is
    at least `iou`. A detection that takes none is left out if at least that share of it lies in a crowd.

    Args:
        dataset: the ground truth.
        results: COCO result records.
        image_ids: images that count.
        threshold: detections of lower scores do not count.
        iou: least overlap of a pair.

    Returns:
        float64 `[C + 1, C + 1]` of counts: rows are labeled classes, columns detected ones, in the dataset's order; the last
        row holds detections without an object, the last column objects without a detection. Their corner is NaN.
    """
    row_of = {category_id: index for index, category_id in enumerate(dataset.category_ids)}
    labels, found = _by_image(dataset.annotations), _by_image(item for item in results if item["score"] >= threshold)
    size = len(row_of) + 1
    counts = np.zeros((size, size))
    for image_id in image_ids:
        objects = [item for item in labels[image_id] if not item["iscrowd"]]
        crowds = [item for item in labels[image_id] if item["iscrowd"]]
        detections = sorted(found[image_id], key=lambda item: -item["score"])
        taken = _match(detections, objects, crowds, iou)
        for detection, match in zip(detections, taken):
            if match != _IN_CROWD:
                labeled = size - 1 if match == _NOTHING else row_of[objects[match]["category_id"]]
                counts[labeled, row_of[detection["category_id"]]] += 1
        for index in set(range(len(objects))).difference(taken):
            counts[row_of[objects[index]["category_id"]], size - 1] += 1
    counts[-1, -1] = np.nan
    return counts


def _match(detections: Sequence[Record], objects: Sequence[Record], crowds: Sequence[Record], iou: float) -> list[int]:
    """Returns for each detection, best first, the index of its object, `_NOTHING` or `_IN_CROWD`."""
    boxes = _boxes(detections)
    overlaps, inside = box_ops.iou(boxes, _boxes(objects)), _share_inside(boxes, _boxes(crowds))
    taken = []
    for free, share in zip(overlaps, inside):
        best = int(np.argmax(free)) if objects else _NOTHING
        if objects and free[best] >= iou:
            overlaps[:, best] = -1
            taken.append(best)
        else:
            taken.append(_IN_CROWD if (share >= iou).any() else _NOTHING)
    return taken


def _by_image(records: Any) -> defaultdict[int, list[Record]]:
    grouped: defaultdict[int, list[Record]] = defaultdict(list)
    for item in records:
        grouped[item["image_id"]].append(item)
    return grouped


def _boxes(records: Sequence[Record]) -> Floats:
    """Returns the boxes of records as float64 `[N, 4]` xyxy."""
    boxes = np.array([item["bbox"] for item in records], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _share_inside(boxes: Floats, regions: Floats) -> Floats:
    """Returns the share of each box's area that lies in each region, `[N, M]`; 0 for a box without area."""
    corner = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    sides = np.maximum(np.minimum(boxes[:, None, 2:], regions[None, :, 2:]) - corner, 0)
    common, area = sides.prod(axis=2), box_ops.area(boxes)[:, None]
    share: Floats = np.divide(common, area, out=np.zeros_like(common), where=area > 0)
    return share
