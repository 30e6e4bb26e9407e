"""Matches detections with ground truth once, by pycocotools or its faster twin, in arrays that can be scored again."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.components import is_installed, load
from runtime.datasets.dataset import Dataset

AREAS = ("all", "small", "medium", "large")
"""COCO's ranges of object area in pixels: all, below 32^2, up to 96^2, and above."""
IOU_THRESHOLDS = 10  # 0.50 to 0.95


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """Detections and objects of one class in one area range.

    Attributes:
        image_index: int32 `[D]`, image of each detection, best score first; ties in the order that pycocotools keeps.
        scores: float64 `[D]`.
        matched: bool `[T, D]`, the detection found an object at this IoU threshold.
        ignored: bool `[T, D]`, the detection counts neither as right nor as wrong (crowds, objects of another size).
        objects: int32 `[I]`, number of objects to be found in each image.
    """

    image_index: NDArray[np.int32]
    scores: NDArray[np.float64]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Matches:
    """Detections of a model on a split, matched with its objects.

    Attributes:
        image_ids: of the images that were scored, sorted; `[I]`.
        class_names: in the order of the category ids; `[K]`.
        by_area: one entry a class, by the name of the area range, see `AREAS`.
    """

    image_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    by_area: dict[str, tuple[ClassMatches, ...]]


def find_judge() -> tuple[Any, Any]:
    """Returns the classes `COCO` and `COCOeval`: ultrafast-pycocotools where it is installed, else pycocotools.

    Raises:
        MissingComponentError: neither is installed, or the first that is does not load.
    """
    if is_installed("ultrafast_pycocotools"):
        judge = load("ultrafast_pycocotools")
        return judge.COCO, functools.partial(judge.COCOeval, store_eval_imgs=True)
    return load("pycocotools.coco").COCO, load("pycocotools.cocoeval").COCOeval


def run_cocoeval(dataset: Dataset, results: Sequence[dict[str, Any]], image_ids: Sequence[int]) -> Any:
    """Runs pycocotools up to its 12 metrics; crowds are ignored as COCO does.

    Args:
        dataset: the ground truth.
        results: COCO result records.
        image_ids: images that count.

    Returns:
        The `COCOeval`, evaluated, accumulated and summarized.

    Raises:
        MissingComponentError: pycocotools is not installed.
    """
    COCO, COCOeval = find_judge()  # noqa: N806
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks on stdout
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": e.image_id, "width": e.width, "height": e.height} for e in dataset.images],
            "annotations": [dict(annotation) for annotation in dataset.annotations],
            "categories": [{"id": k, "name": n} for k, n in zip(dataset.category_ids, dataset.class_names)],
        }
        truth.createIndex()
        found = COCO()
        found.dataset = {
            **truth.dataset,
            "annotations": [
                {**r, "id": i, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for i, r in enumerate(results, 1)
            ],
        }
        found.createIndex()
        judge = COCOeval(truth, found, "bbox")
        judge.params.imgIds = sorted(image_ids)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def read_matches(judge: Any, dataset: Dataset) -> Matches:
    """Keeps the matches of an evaluated `COCOeval`, without its millions of Python objects."""
    images = len(judge.params.imgIds)
    names = dict(zip(dataset.category_ids, dataset.class_names))
    by_area = {}
    for a, area in enumerate(AREAS):
        first = [(k * len(AREAS) + a) * images for k in range(len(judge.params.catIds))]
        by_area[area] = tuple(_class_matches(judge.evalImgs[start : start + images]) for start in first)
    return Matches(tuple(judge.params.imgIds), tuple(names[k] for k in judge.params.catIds), by_area)


def _class_matches(images: Sequence[Any]) -> ClassMatches:
    """Joins the entries of all images, as `COCOeval.accumulate` does; None stands for an image without the class."""
    entries = [(index, entry) for index, entry in enumerate(images) if entry is not None]
    scores = np.array([score for _, entry in entries for score in entry["dtScores"]], np.float64)
    order = np.argsort(-scores, kind="mergesort")
    counts = [len(entry["dtScores"]) for _, entry in entries]
    image_index = np.repeat(np.array([index for index, _ in entries], np.int32), counts)
    empty: list[NDArray[Any]] = [np.zeros((IOU_THRESHOLDS, 0))]
    matched = np.concatenate([*empty, *(entry["dtMatches"] for _, entry in entries)], axis=1) > 0
    ignored = np.concatenate([*empty, *(entry["dtIgnore"] for _, entry in entries)], axis=1) > 0
    objects = np.zeros(len(images), np.int32)
    for index, entry in entries:
        objects[index] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
    return ClassMatches(image_index[order], scores[order], matched[:, order], ignored[:, order], objects)
