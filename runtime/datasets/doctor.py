"""Examines a split for what spoils training or makes its accuracy a fiction: broken images, doubled labels, leakage."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from runtime.datasets.copies import content_keys, find_common
from runtime.datasets.dataset import Dataset, LabeledImage
from runtime.datasets.folder import shorten
from runtime.datasets.summary import class_counts
from runtime.errors import InputError
from runtime.media.kinds import IMAGE_SUFFIXES
from runtime.ops import boxes as box_ops

log = logging.getLogger(__name__)

_SAME = 0.9  # IoU from which on two labels are taken to mean one object
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        text: what, how often, and where, in one line.
        is_fault: something to correct; otherwise something to know.
    """

    text: str
    is_fault: bool


def examine(dataset: Dataset, input_side: int, least_side: float) -> list[Finding]:
    """Examines one split; reads every image.

    Args:
        dataset: the split.
        input_side: of the network's input in pixels.
        least_side: smallest side of a box there that training keeps, in pixels; 0 for a split that is not trained on.
    """
    faults = [*dataset.losses, *_missing_classes(dataset), *_tiny_boxes(dataset), *_doubled_labels(dataset)]
    faults += [*_unreadable(dataset), *_copies(dataset)]
    notes = [*dataset.notes, *_lost_in_training(dataset, input_side, least_side)]
    split = f"{dataset.split}: "
    return [Finding(_prefixed(text, split), True) for text in faults] + [
        Finding(_prefixed(text, split), False) for text in notes
    ]


def examine_leakage(train: Dataset, val: Dataset) -> list[Finding]:
    """Finds images of one split in the other, by the content of their files."""
    shared = find_common(train.images, val.images)
    if not shared:
        return []
    text = f"{_count(shared, 'image')} of {val.split} in {train.split} too, by content ({_names(shared)}): AP will be too high"
    return [Finding(text, True)]


def examine_unlisted(splits: Sequence[Dataset]) -> list[Finding]:
    """Counts the images beside those of the splits that are in none of them."""
    listed = {image.path for dataset in splits for image in dataset.images}
    beside = (path for folder in {path.parent for path in listed} for path in folder.iterdir())
    left = sorted(path.name for path in beside if path.suffix.lower() in IMAGE_SUFFIXES and path not in listed)
    if not left:
        return []
    return [Finding(f"{len(left)} images lie beside those of the splits and are in none, such as {shorten(left[0])}", False)]


def _missing_classes(dataset: Dataset) -> Iterator[str]:
    counts = class_counts(dataset)
    missing = [name for name, count in counts.items() if not count]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        yield f"no object of {len(missing)} of {len(counts)} classes: {', '.join(missing[:_SHOWN])}{more}"


def _tiny_boxes(dataset: Dataset) -> Iterator[str]:
    found = [image for image in dataset.images if len(image.boxes) and (_sides(image) < 1).any()]
    count = sum(int((_sides(image) < 1).any(axis=1).sum()) for image in found)
    if count:
        yield f"{count} boxes have a side under a pixel ({_names(found)})"


def _doubled_labels(dataset: Dataset) -> Iterator[str]:
    same: dict[int, int] = defaultdict(int)
    other: dict[int, int] = defaultdict(int)
    for index, image in enumerate(dataset.images):
        pairs = np.argwhere(np.triu(box_ops.iou(image.boxes, image.boxes) >= _SAME, 1)) if len(image.boxes) > 1 else ()
        for first, second in pairs:
            (same if image.class_ids[first] == image.class_ids[second] else other)[index] += 1
    for found, what in ((same, "objects are labeled twice"), (other, "objects are labeled as two classes")):
        if found:
            images = [dataset.images[index] for index in found]
            yield f"{sum(found.values())} {what}, by boxes that overlap by {_SAME:.0%} or more ({_names(images)})"


def _unreadable(dataset: Dataset) -> Iterator[str]:
    """Decodes every image; tells those that cannot be read from those of another size than annotated."""
    broken: list[str] = []
    lying: list[str] = []
    for image in tqdm(dataset.images, desc=f"read {dataset.split}", unit="image", disable=None, leave=False):
        try:
            image.read()
        except InputError as error:
            (lying if "its annotation says" in str(error) else broken).append(str(error))
    if broken:
        yield f"{len(broken)} images cannot be read, such as {shorten(broken[0])}"
    if lying:
        yield f"{len(lying)} images are of another size than annotated, such as {shorten(lying[0])}"


def _copies(dataset: Dataset) -> Iterator[str]:
    by_content: dict[str, list[LabeledImage]] = defaultdict(list)
    for image, content in zip(dataset.images, content_keys(dataset.images)):
        by_content[content].append(image)
    copies = [image for images in by_content.values() for image in images[1:]]
    if copies:
        yield f"{_count(copies, 'image')} copies of others of the split, by content ({_names(copies)})"


def _lost_in_training(dataset: Dataset, input_side: int, least_side: float) -> Iterator[str]:
    lost = 0
    for image in dataset.images:
        scale = input_side / max(image.width, image.height)
        lost += int(((_sides(image) * scale) < least_side).any(axis=1).sum())
    if lost:
        total = sum(len(image.boxes) for image in dataset.images)
        yield f"{lost} of {total} boxes have a side under {least_side:g} pixels at size {input_side}: training leaves them out"


def _sides(image: LabeledImage) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return image.boxes[:, 2:] - image.boxes[:, :2]


def _count(images: Sequence[LabeledImage], noun: str) -> str:
    return f"{len(images)} {noun} is" if len(images) == 1 else f"{len(images)} {noun}s are"


def _names(images: Sequence[LabeledImage]) -> str:
    more = ", ..." if len(images) > _SHOWN else ""
    return ", ".join(shorten(image.path.name) for image in images[:_SHOWN]) + more


def _prefixed(text: str, split: str) -> str:
    return text if split in text else f"{split}{text}"
