"""Fits anchors to the shapes of a dataset's boxes: k-means on shape IoU."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.dataset import Dataset
from runtime.errors import InputError
from runtime.ops import preprocess

Floats = NDArray[np.float64]
Shapes = tuple[tuple[float, float], ...]

RECALL_IOU = 0.5
"""Shape IoU from which an anchor counts as fitting a box."""
_RESTARTS = 10
_ROUNDS = 100  # of one restart, which usually settles within 30
_MOST = 20_000  # boxes that the search looks at


@dataclass(frozen=True)
class Fit:
    """How well anchors fit boxes.

    Attributes:
        recall: share of the boxes that an anchor fits with `RECALL_IOU`, the best that any training could start from.
        mean_iou: of each box with its best anchor.
        per_level: boxes whose best anchor is of the level, coarsest first, 3 anchors a level.
    """

    recall: float
    mean_iou: float
    per_level: tuple[int, ...]


def box_shapes(dataset: Dataset, size: int, resize: str) -> Floats:
    """Returns (width, height) of the boxes to train on, in pixels of a square input of that side, float64 `[N, 2]`."""

    @functools.lru_cache(maxsize=1024)
    def scale(width: int, height: int) -> tuple[float, float]:
        return preprocess.fit(width, height, (size, size), resize).scale

    found = []
    for image in dataset.images:
        boxes = image.boxes[~image.crowd].astype(np.float64)
        found.append((boxes[:, 2:] - boxes[:, :2]) * scale(image.width, image.height))
    shapes = np.concatenate([np.zeros((0, 2)), *found])
    return shapes[(shapes > 0).all(axis=1)]


def measure_fit(shapes: Floats, anchors: Shapes) -> Fit:
    """Measures how well anchors, small to large, fit boxes `[N, 2]`, N at least 1."""
    ious = _shape_iou(shapes, np.array(anchors, np.float64))
    best = ious.max(axis=1)
    level = ious.argmax(axis=1) // 3
    counts = np.bincount(level, minlength=len(anchors) // 3)[::-1]
    return Fit(float((best >= RECALL_IOU).mean()), float(best.mean()), tuple(counts.tolist()))


def fit_anchors(shapes: Floats, count: int, seed: int = 0) -> Shapes:
    """Finds the anchors with the highest mean shape IoU by k-means, the best of several restarts.

    Args:
        shapes: (width, height) of the boxes, `[N, 2]`.
        count: of anchors.
        seed: of the restarts, and of the choice among very many boxes.

    Returns:
        (width, height) by area, small to large, to a tenth of a pixel.

    Raises:
        InputError: fewer different shapes than anchors.
    """
    different = len(np.unique(np.round(shapes, 1), axis=0))
    if different < count:
        raise InputError(
            f"anchors: {count} need boxes of as many different shapes, the training images have {different}; use the"
            " recipe's anchors, or give some by hand"
        )
    rng = np.random.default_rng(seed)
    if len(shapes) > _MOST:
        shapes = shapes[rng.choice(len(shapes), _MOST, replace=False)]
    found = [_cluster(shapes, count, rng) for _ in range(_RESTARTS)]
    best = max(found, key=lambda centers: float(_shape_iou(shapes, centers).max(axis=1).mean()))
    rounded = np.maximum(np.round(best, 1), 0.1)
    ordered = sorted(rounded.tolist(), key=lambda side: (side[0] * side[1], side[0]))
    return tuple((width, height) for width, height in ordered)


def _cluster(shapes: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Runs k-means once, with the median as the center of a cluster."""
    centers = _first_centers(shapes, count, rng)
    owner = np.full(len(shapes), -1)
    for _ in range(_ROUNDS):
        ious = _shape_iou(shapes, centers)
        previous, owner = owner, ious.argmax(axis=1)
        if np.array_equal(previous, owner):
            break
        for index in range(count):
            own = shapes[owner == index]
            # A center that lost its boxes moves to the one that is fitted worst.
            centers[index] = np.median(own, axis=0) if len(own) else shapes[ious.max(axis=1).argmin()]
    return centers


def _first_centers(shapes: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Draws boxes as centers, the likelier the worse the ones before fit them (k-means++)."""
    chosen: Floats = shapes[rng.integers(len(shapes))][None]
    while len(chosen) < count:
        distance = (1 - _shape_iou(shapes, chosen).max(axis=1)).clip(min=0) ** 2
        total = distance.sum()
        drawn = rng.choice(len(shapes), p=distance / total if total > 0 else None)
        chosen = np.concatenate([chosen, shapes[drawn][None]])
    return chosen


def _shape_iou(shapes: Floats, anchors: Floats) -> Floats:
    """Computes the IoU `[N, A]` of boxes `[N, 2]` and anchors `[A, 2]` with a common center."""
    shared = np.minimum(shapes[:, None], anchors[None]).prod(axis=2)
    return np.asarray(shared / (shapes.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - shared))
