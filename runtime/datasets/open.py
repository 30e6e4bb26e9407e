"""Detects the layout of a dataset folder and resolves the split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.datasets import coco, voc
from runtime.datasets.dataset import Dataset
from runtime.datasets.reader import DatasetReader
from runtime.errors import InputError
from runtime.files import PathLike

READERS: tuple[DatasetReader, ...] = (coco, voc)
"""Every layout that is known, in the order in which they are tried."""


def open_dataset(root: PathLike, split: str) -> Dataset:
    """Opens a split of a dataset folder, whose layout (COCO or VOC) is told from what lies in it.

    Args:
        root: the folder.
        split: the name of a split (`val2017`), or a role: `train` or `val`, which picks the split of that role
            (`train2017`, `trainval`, ...).

    Raises:
        InputError: no such folder, layout or split, or annotations that cannot be trusted.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such dataset folder")
    for reader in READERS:
        names = reader.splits(folder)
        if names:
            dataset = reader.read(folder, choose_split(folder, split, names))
            if not dataset.images:
                raise InputError(f"{folder}: split {dataset.split!r} has no images")
            return dataset
    raise InputError(
        f"{folder}: neither the COCO layout (annotations/instances_*.json) nor the VOC layout (Annotations, ImageSets/Main)"
    )


def choose_split(root: Path, wanted: str, names: Sequence[str]) -> str:
    """Returns the split called `wanted`, else the one that plays its role; `val` falls back to a test split.

    Raises:
        InputError: there is none; the message lists what there is.
    """
    if wanted in names:
        return wanted
    for prefix in {"train": ("train",), "val": ("val", "test")}.get(wanted, ()):
        matching = sorted(name for name in names if name.startswith(prefix))
        if matching:
            return matching[0]
    raise InputError(f"{root}: no split {wanted!r}; found {', '.join(sorted(names))}")
