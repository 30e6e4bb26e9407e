"""Reads the COCO layout: `annotations/instances_<split>.json`, images in `<split>/`, `images/<split>/` or `images/`."""

from __future__ import annotations

from runtime.datasets.coco_json import read_coco_json
from runtime.datasets.dataset import Dataset
from runtime.datasets.folder import DatasetFolder

LAYOUT = "COCO (annotations/instances_<split>.json)"
_PREFIX = "instances_"


def splits(folder: DatasetFolder) -> list[str]:
    """Lists the splits that have an `annotations/instances_<split>.json`."""
    return sorted(path.stem[len(_PREFIX) :] for path in (folder.root / "annotations").glob(f"{_PREFIX}*.json"))


def read(folder: DatasetFolder, split: str) -> Dataset:
    """Reads one split; see `read_coco_json` for errors."""
    root = folder.root
    source = root / "annotations" / f"{_PREFIX}{split}.json"
    siblings = [root / "annotations" / f"{_PREFIX}{name}.json" for name in splits(folder) if name != split]
    images = [root / split, root / "images" / split, root / "images", root]
    return read_coco_json(folder, source, split, images, siblings)
