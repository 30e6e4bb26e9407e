"""Which layout a dataset folder has, and which of its splits is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.datasets import coco, voc
from runtime.datasets.dataset import Dataset
from runtime.errors import InputError
from runtime.files import PathLike


def open_dataset(root: PathLike, split: str) -> Dataset:
    """Open a split of a COCO- or VOC-layout folder; which of the two is told from the folder.

    Args:
        split: the name of a split (`val2017`), or a role: `train` or `val`, which picks the split of that role
            (`train2017`, `trainval`, ...).

    Raises:
        InputError: no such folder, layout or split, or annotations that cannot be trusted.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such dataset folder")
    readers = {coco: coco.splits(folder), voc: voc.splits(folder)}
    for reader, names in readers.items():
        if names:
            dataset: Dataset = reader.read(folder, choose_split(folder, split, names))
            if not dataset.images:
                raise InputError(f"{folder}: split {dataset.split!r} has no images")
            return dataset
    raise InputError(
        f"{folder}: neither the COCO layout (annotations/instances_*.json) nor the VOC layout (Annotations, ImageSets/Main)"
    )


def choose_split(root: Path, wanted: str, names: Sequence[str]) -> str:
    """The split called `wanted`, else the one that plays its role; `val` falls back to a test split.

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
