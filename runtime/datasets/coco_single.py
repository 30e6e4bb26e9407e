"""Reads COCO files of any name with a folder of images, as CVAT, Label Studio and COCO-Annotator export them."""

from __future__ import annotations

from pathlib import Path

from runtime.datasets.coco_json import is_coco, read_coco_json
from runtime.datasets.dataset import Dataset
from runtime.datasets.folder import DatasetFolder
from runtime.errors import InputError

LAYOUT = "one COCO file with one folder of images (such as result.json and images/)"


def splits(folder: DatasetFolder) -> list[str]:
    """Lists the COCO files in the folder, in `annotations/` and in folders beside, by their names without suffix."""
    return sorted(_sources(folder))


def read(folder: DatasetFolder, split: str) -> Dataset:
    """Reads one file; see `read_coco_json` for errors."""
    sources = _sources(folder)
    source, root = sources[split], folder.root
    images = [root / split, root / "images" / split, root / "images", source.parent / "images", source.parent, root]
    beside = sorted(path for path in root.iterdir() if path.is_dir() and path not in images)
    siblings = [path for name, path in sources.items() if name != split]
    return read_coco_json(folder, source, split, [path for path in (*images, *beside) if path.is_dir()], siblings)


def _sources(folder: DatasetFolder) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for pattern in ("*.json", "annotations/*.json", "*/*.json"):
        for path in sorted(folder.root.glob(pattern)):
            if path.stem not in found and _is_coco_file(folder, path):
                found[path.stem] = path
        if found:
            break
    return found


def _is_coco_file(folder: DatasetFolder, path: Path) -> bool:
    try:
        return is_coco(folder.read_json(path))
    except InputError:
        return False
