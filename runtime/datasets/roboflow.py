"""Reads Roboflow's COCO export: `train/`, `valid/` and `test/`, each with its images and `_annotations.coco.json`."""

from __future__ import annotations

from runtime.datasets.coco_json import read_coco_json
from runtime.datasets.dataset import Dataset
from runtime.datasets.folder import DatasetFolder

LAYOUT = "Roboflow's COCO export (<split>/_annotations.coco.json)"
_FILE = "_annotations.coco.json"


def splits(folder: DatasetFolder) -> list[str]:
    """Lists the folders that hold an `_annotations.coco.json`."""
    return sorted(path.parent.name for path in folder.root.glob(f"*/{_FILE}"))


def read(folder: DatasetFolder, split: str) -> Dataset:
    """Reads one split; see `read_coco_json` for errors."""
    root = folder.root
    siblings = [root / name / _FILE for name in splits(folder) if name != split]
    return read_coco_json(folder, root / split / _FILE, split, [root / split, root], siblings)
