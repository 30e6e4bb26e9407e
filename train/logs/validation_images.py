"""Draws validation images with their ground truth beside what a model detects in them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from runtime.datasets.dataset import Dataset, LabeledImage
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.ops.image import Image
from runtime.viz.annotate import class_color, draw
from runtime.viz.canvas import FAINT, GAP, INK, PAPER, Color, beside, pad, paper, paste, shorten, stack, text_size, write

_SIDE, _HEADING = 320, 24  # pixels of an image's longer side, and of the line above it
_PAIRS = 2  # side by side
_MOST = 8  # images drawn
_CROWD: Color = (160, 160, 160)


def draw_validation(detector: Detector, threshold: float, dataset: Dataset) -> Image | None:
    """Draws some images of a split in pairs, ground truth on the left and detections on the right.

    They are spread over the split, those with objects first, and the same every time.

    Args:
        detector: of the model.
        threshold: lowest score that it shows.
        dataset: the split.

    Returns:
        uint8 BGR; None where no image can be read.
    """
    pairs = []
    for entry, image in itertools.islice(_readable(dataset), _MOST):
        found = detector(image)
        truth = Detections.from_arrays(entry.boxes, np.ones(len(entry.boxes)), entry.class_ids)
        colors = [_CROWD if crowd else class_color(k) for k, crowd in zip(truth.class_ids.tolist(), entry.crowd.tolist())]
        left = _fitted(image, truth, dataset.class_names, colors)
        right = _fitted(image, found, detector.spec.class_names)
        said = f"{len(found)} detected, score >= {threshold:.2g}"
        if not len(found):
            said = f"nothing above {threshold:.2g}"
            _announce(right, said)
        labeled = f"{len(truth)} labeled: {entry.path.name}"
        pairs.append(beside([_headed(left, labeled), _headed(right, said)], gap=4))
    rows = [beside(pairs[start : start + _PAIRS], gap=2 * GAP) for start in range(0, len(pairs), _PAIRS)]
    return pad(stack(rows, gap=GAP)) if rows else None


def _readable(dataset: Dataset) -> Iterator[tuple[LabeledImage, Image]]:
    """Yields the images of a split, first some that stand for all; the evaluation has named those that cannot be read."""
    full = {index for index, entry in enumerate(dataset.images) if len(entry.boxes)}
    for index in (*_spread(sorted(full)), *_spread(sorted({*range(len(dataset))} - full))):
        entry = dataset.images[index]
        try:
            yield entry, entry.read()
        except InputError:
            continue


def _spread(indices: Sequence[int]) -> list[int]:
    """Orders indices: some that are evenly spread, then the others."""
    chosen = [indices[place] for place in np.linspace(0, len(indices) - 1, min(_MOST, len(indices))).astype(int).tolist()]
    return [*chosen, *sorted({*indices} - {*chosen})]


def _fitted(image: Image, found: Detections, class_names: Sequence[str], colors: Sequence[Color] | None = None) -> Image:
    """Draws boxes on an image scaled to `_SIDE`, where labels are legible whatever its own size; with scores unless colored."""
    scale = _SIDE / max(image.shape[:2])
    height, width = (max(round(length * scale), 1) for length in image.shape[:2])
    resized = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    scaled = dataclasses.replace(found, boxes=found.boxes * np.float32(scale))
    return draw(resized, scaled, class_names, colors, with_scores=colors is None)


def _announce(image: Image, text: str) -> None:
    """Writes a text into the middle of an image, on a ground that makes it legible."""
    width, height, depth = text_size(text, 0.6)
    left, base = max((image.shape[1] - width) // 2, 0), (image.shape[0] + height) // 2
    cv2.rectangle(image, (left - 6, base - height - 6), (left + width + 6, base + depth + 6), PAPER, cv2.FILLED)
    write(image, text, (left, base), 0.6, INK)


def _headed(image: Image, text: str) -> Image:
    """Puts an image below a line of text."""
    cell = paper(_SIDE, _HEADING + image.shape[0])
    write(cell, shorten(text, 0.45, _SIDE), (0, 16), 0.45, FAINT)
    paste(cell, image, (_SIDE - image.shape[1]) // 2, _HEADING)
    return cell
