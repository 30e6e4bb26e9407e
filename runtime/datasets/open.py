"""Detects the layout of a dataset folder and resolves the split."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from runtime.datasets import coco, coco_single, roboflow, voc, yolo
from runtime.datasets.dataset import Dataset, MadeSplit
from runtime.datasets.folder import DatasetFolder, describe
from runtime.datasets.reader import DatasetReader
from runtime.datasets.split import divide
from runtime.errors import DetectorError, InputError
from runtime.files import PathLike

log = logging.getLogger(__name__)

READERS: tuple[DatasetReader, ...] = (coco, voc, roboflow, yolo, coco_single)
"""Every layout that is known, in the order in which they are tried."""
WHOLE = "all"
"""Name of the split that holds every image of a dataset without validation images."""
_LOOKED_INTO = 10  # folders in one of no layout, for a hint
_ROLES = {"train": ("train",), "val": ("val", "test")}


def open_dataset(root: PathLike, split: str, made: Optional[MadeSplit] = None, follow_links: bool = False) -> Dataset:
    """Opens a split of a dataset folder, whose layout is told from what lies in it.

    Args:
        root: the folder.
        split: the name of a split (`val2017`), or a role: `train` or `val`, which picks the split of that role
            (`train2017`, `trainval`, ...). Where no split plays `val`, the roles are made by dividing the only one there is,
            and `all` names it whole.
        made: how to divide it; None for the default.
        follow_links: read files to which symbolic links lead out of the folder.

    Raises:
        InputError: no such folder, layout or split, or annotations that cannot be trusted.
    """
    with _without_garbage_collection():
        return _open(DatasetFolder(root, follow_links), split, made)


def _open(folder: DatasetFolder, split: str, made: Optional[MadeSplit]) -> Dataset:
    reader, names = find_layout(folder)
    base = undivided(names)
    if base is None or split not in (*_ROLES, WHOLE):
        dataset = reader.read(folder, choose_split(folder.root, split, names))
        _check_images(dataset)
        if made and not made.sha256 and base is None and split == "val":
            log.warning("%s: has validation images of its own, so no share of others is held back", folder.root)
        return dataset
    dataset = reader.read(folder, base)
    _check_images(dataset)
    if split == WHOLE:
        return replace(dataset, split=WHOLE)
    made = made or MadeSplit()
    parts = divide(dataset, made)
    if split == "val":
        log.info(
            "%s: no validation images; of %d images %d are held back for it (share %g, seed %d)",
            *(folder.root, len(dataset), len(parts["val"]), made.share, made.seed),
        )
    return parts[split]


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Spares the garbage collector from looking through a million fresh records again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def find_layout(folder: DatasetFolder) -> tuple[DatasetReader, list[str]]:
    """Returns the reader of a folder, and the names of the splits in it.

    Raises:
        InputError: no such folder, or a layout that is not known; the message says what was seen and what would do.
    """
    root = folder.root
    if not root.is_dir():
        raise InputError(f"{root}: no such dataset folder")
    for reader in READERS:
        names = reader.splits(folder)
        if names:
            return reader, names
    below = [path for path in sorted(root.iterdir()) if path.is_dir()]
    inside = next((path for path in below[:_LOOKED_INTO] if _is_dataset(path)), None)
    hint = f"; {inside} is a dataset: use --data {inside}" if inside else ""
    raise InputError(
        f"{root}: no dataset layout that is known; found {describe(root)}{hint}; expected"
        f" {', '.join(reader.LAYOUT for reader in READERS[:-1])}, or {READERS[-1].LAYOUT}"
    )


def undivided(names: Sequence[str]) -> Optional[str]:
    """Returns the split that `train` and `val` are made of; None if the dataset has validation images of its own.

    It has none if all its splits are for training, or it has a single one without a role.
    """
    if all(name.startswith("train") for name in names):
        return min(names, key=lambda name: (name != "train", name))
    if len(names) == 1 and not names[0].startswith(_ROLES["val"]):
        return names[0]
    return None


def choose_split(root: Path, wanted: str, names: Sequence[str]) -> str:
    """Returns the split called `wanted`, else the one that plays its role; `val` falls back to a test split.

    Raises:
        InputError: there is none; the message lists what there is.
    """
    if wanted in names:
        return wanted
    for prefix in _ROLES.get(wanted, ()):
        matching = sorted(name for name in names if name.startswith(prefix))
        if matching:
            return matching[0]
    raise InputError(f"{root}: no split {wanted!r}; found {', '.join(sorted(names))}")


def _is_dataset(root: Path) -> bool:
    try:
        return any(reader.splits(DatasetFolder(root)) for reader in READERS)
    except DetectorError:
        return False


def _check_images(dataset: Dataset) -> None:
    if not dataset.images:
        raise InputError(f"{dataset.root}: split {dataset.split!r} has no images")
