"""Summarizes a split in a few lines, and refuses one that nothing could be learned from or measured by."""

from __future__ import annotations

import logging

import numpy as np

from runtime.datasets.dataset import Dataset
from runtime.errors import InputError

log = logging.getLogger(__name__)

_LISTED = 6
_SMALL, _MEDIUM = 32**2, 96**2  # square pixels, COCO's limits


def summarize(dataset: Dataset) -> list[str]:
    """Returns lines that tell images, objects by class and size, and the classes that have none."""
    objects = dataset.truth.where(~dataset.truth.crowd)
    crowds = len(dataset.truth) - len(objects)
    empty = len(dataset) - len(np.unique(objects.image_ids))
    counts = class_counts(dataset)
    listed = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{name} {count}" for name, count in listed[:_LISTED] if count]
    missing = [name for name, count in counts.items() if not count]
    more = len(listed) - len(shown) - len(missing)
    classes = ", ".join([*shown, *([f"{more} more classes"] if more else [])])
    limits = np.searchsorted([_SMALL, _MEDIUM], objects.areas, side="right")
    sizes = ", ".join(
        f"{np.count_nonzero(limits == index)} {name}" for index, name in enumerate(("small", "medium", "large")) if len(objects)
    )
    first = f"{dataset.split}: {len(dataset)} images{f' ({empty} without objects)' if empty else ''}, {len(objects)} objects"
    first += f": {classes}; {sizes}" if len(objects) else ""
    lines = [first + (f"; {crowds} crowds or difficult ones not counted" if crowds else "")]
    if missing and len(objects):
        more = len(missing) - _LISTED
        names = ", ".join(missing[:_LISTED]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"{dataset.split}: no object of {len(missing)} of {len(counts)} classes: {names}")
    return lines


def log_summary(dataset: Dataset) -> None:
    """Logs the lines of `summarize`."""
    for line in summarize(dataset):
        log.info("%s", line)


def class_counts(dataset: Dataset) -> dict[str, int]:
    """Counts the objects of each class, crowds left out."""
    counted = np.bincount(dataset.truth.class_ids[~dataset.truth.crowd], minlength=len(dataset.class_names))
    return dict(zip(dataset.class_names, counted.tolist()))


def require_objects(dataset: Dataset, purpose: str) -> None:
    """Raises InputError unless the split has an object that counts.

    Args:
        dataset: the split.
        purpose: what it is needed for: `train on` or `measure by`.
    """
    if dataset.truth.crowd.all():
        only = f" but {len(dataset.truth)} crowds or difficult ones" if len(dataset.truth) else ""
        raise InputError(
            f"{dataset.root}: split {dataset.split!r} has no object to {purpose} in its {len(dataset)} images{only};"
            " choose another split, or check the annotations with python -m train.data"
        )
