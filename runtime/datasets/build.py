"""Builds a `Dataset` from the raw annotations of any layout, and refuses what cannot be meant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.dataset import Dataset, GroundTruth, SourceId
from runtime.datasets.image_table import ImageTable
from runtime.errors import InputError
from runtime.ops import boxes as box_ops

log = logging.getLogger(__name__)

LARGEST = 1e6
"""Largest coordinate and side of a box, in pixels."""
_MOST_NORMALIZED = 0.1  # share of boxes inside the first pixel from which on the unit is wrong, rather than some labels


class ImageRecord(NamedTuple):
    """One image of a split, before its objects are known.

    Attributes:
        path: the image file.
        width: in pixels, as annotated.
        height: in pixels, as annotated.
        source_id: see `LabeledImage`.
    """

    path: Union[Path, str]
    width: int
    height: int
    source_id: Optional[SourceId] = None


@dataclass(frozen=True, eq=False)
class RawObjects:
    """Objects of a split as annotated.

    Attributes:
        image: int64 `[N]`, position of the image in the split, from 0.
        class_ids: int64 `[N]`, indices into the class names.
        boxes: float64 `[N, 4]`, left, top, width and height in pixels.
        crowd: bool `[N]`.
        areas: float64 `[N]`, in square pixels, as annotated; None for the boxes' own.
    """

    image: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    areas: Optional[NDArray[np.float64]] = None


def build_dataset(
    root: Path,
    split: str,
    source: Path,
    class_names: Sequence[str],
    images: Sequence[ImageRecord],
    objects: RawObjects,
    *,
    source_category_ids: Sequence[SourceId] = (),
    notes: Sequence[str] = (),
    losses: Sequence[str] = (),
    clip_truth: bool = True,
) -> Dataset:
    """Builds the split: clips boxes to their image, leaves out those without area there, counts and logs them.

    Args:
        root: the dataset folder.
        split: name of the split.
        source: the file that messages name.
        class_names: in the order of the class ids.
        images: in the order of the split.
        objects: their objects; boxes must be finite, see `check_boxes`.
        source_category_ids: see `Dataset`.
        notes: see `Dataset`; logged here.
        losses: what the reader left out, see `Dataset`; logged here.
        clip_truth: evaluate against the clipped boxes; COCO evaluates against boxes as annotated.

    Raises:
        InputError: classes without or with doubled names, or boxes in another unit than pixels.
    """
    check_names(source, class_names)
    _check_unit(source, objects.boxes)
    corners = np.concatenate([objects.boxes[:, :2], objects.boxes[:, :2] + objects.boxes[:, 2:]], axis=1)
    sides = np.array([(image.width, image.height) for image in images], np.float64).reshape(-1, 2)[objects.image]
    inside = np.clip(corners, 0, np.tile(sides, 2)).astype(np.float32)
    keep = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
    losses = [*losses, *_count_lost(source, corners, sides, keep)]
    for note in notes:
        log.info("%s", note)
    for loss in losses:
        log.warning("%s", loss)
    image_ids = _rank(images)
    truth = _truth(objects, image_ids, inside, keep) if clip_truth else _truth_as_annotated(objects, image_ids)
    return Dataset(
        root,
        split,
        tuple(class_names),
        _split_by_image(images, image_ids, objects, inside, keep),
        truth,
        tuple(source_category_ids),
        tuple(notes),
        tuple(losses),
    )


def check_names(source: Path, names: Sequence[str]) -> None:
    """Raises InputError unless there are classes, and each has a name of its own."""
    if not names:
        raise InputError(f"{source}: no class is named; categories must exist")
    doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if doubled:
        raise InputError(
            f"{source}: {len(doubled)} class names stand for two classes each ({', '.join(map(repr, doubled[:3]))});"
            " classes need distinct ids and names: rename one or join them"
        )


def check_boxes(boxes: NDArray[np.float64], name: Callable[[int], str]) -> None:
    """Raises InputError for the first box that is not finite, has a negative side or is far larger than any image.

    Args:
        boxes: float64 `[N, 4]`, left, top, width and height.
        name: says which annotation the index means, file included.
    """
    finite = np.isfinite(boxes).all(axis=1)
    bad = np.flatnonzero(~finite | (boxes[:, 2:] < 0).any(axis=1))
    if len(bad):
        raise InputError(f"{name(int(bad[0]))} has a box that is not finite or has a negative side")
    bad = np.flatnonzero((np.abs(boxes) > LARGEST).any(axis=1))
    if len(bad):
        raise InputError(f"{name(int(bad[0]))} has a box beyond {LARGEST:,.0f} pixels; correct or remove it")


def _check_unit(source: Path, boxes: NDArray[np.float64]) -> None:
    """Raises InputError where boxes are shares of the image: then all four numbers are in 0-1, as next to no box in pixels."""
    shares = (boxes >= 0).all(axis=1) & (boxes <= 1).all(axis=1) & (boxes % 1 > 0).any(axis=1)
    count = int(np.count_nonzero(shares))
    if count and count >= _MOST_NORMALIZED * len(boxes):
        raise InputError(
            f"{source}: {count} of {len(boxes)} boxes are under a pixel, in 0-1, as if in shares of the image; boxes must be in"
            " pixels: multiply x and width by the image's width, y and height by its height"
        )


def _count_lost(source: Path, corners: NDArray[np.float64], sides: NDArray[np.float64], keep: NDArray[np.bool_]) -> list[str]:
    losses = []
    lost = int(np.count_nonzero(~keep))
    if lost:
        losses.append(f"{source}: {lost} of {len(keep)} boxes have no area inside their image and are left out")
    outside = keep & ((corners[:, :2] < -1).any(axis=1) | (corners[:, 2:] > sides + 1).any(axis=1))
    if outside.any():
        losses.append(f"{source}: {np.count_nonzero(outside)} of {len(keep)} boxes reach out of their image and are clipped")
    return losses


def _rank(images: Sequence[ImageRecord]) -> NDArray[np.int64]:
    """Numbers the images from 1 in the order of their ids, in which pycocotools breaks ties; int64 `[I]`."""
    by_id = sorted(range(len(images)), key=lambda index: _sortable(images[index].source_id))
    image_ids = np.empty(len(images), np.int64)
    image_ids[by_id] = np.arange(1, len(images) + 1)
    return image_ids


def _sortable(source_id: Optional[SourceId]) -> tuple[int, str]:
    return (0, source_id) if isinstance(source_id, str) else (source_id or 0, "")


def _truth(
    objects: RawObjects, image_ids: NDArray[np.int64], inside: NDArray[np.float32], keep: NDArray[np.bool_]
) -> GroundTruth:
    boxes = box_ops.xyxy_to_xywh(inside[keep].astype(np.float64))
    areas = boxes[:, 2] * boxes[:, 3]
    return GroundTruth(image_ids[objects.image[keep]], objects.class_ids[keep], boxes, areas, objects.crowd[keep])


def _truth_as_annotated(objects: RawObjects, image_ids: NDArray[np.int64]) -> GroundTruth:
    areas = objects.boxes[:, 2] * objects.boxes[:, 3] if objects.areas is None else objects.areas
    return GroundTruth(image_ids[objects.image], objects.class_ids, objects.boxes, areas, objects.crowd)


def _split_by_image(
    images: Sequence[ImageRecord],
    image_ids: NDArray[np.int64],
    objects: RawObjects,
    inside: NDArray[np.float32],
    keep: NDArray[np.bool_],
) -> ImageTable:
    kept = np.flatnonzero(keep)
    order = kept[np.argsort(objects.image[kept], kind="stable")]
    return ImageTable(
        image_ids,
        [str(image.path) for image in images],
        np.array([(image.width, image.height) for image in images], np.int64).reshape(-1, 2),
        np.searchsorted(objects.image[order], np.arange(len(images) + 1)),
        inside[order],
        objects.class_ids[order],
        objects.crowd[order],
        [image.source_id for image in images],
    )
