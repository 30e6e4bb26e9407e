"""Reads the Pascal VOC layout: `Annotations/*.xml`, `ImageSets/Main/<split>.txt`, `JPEGImages/`."""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Optional

import numpy as np

from runtime.datasets.build import ImageRecord, RawObjects, build_dataset, check_boxes
from runtime.datasets.dataset import Dataset
from runtime.datasets.folder import DatasetFolder, shorten
from runtime.errors import InputError

LAYOUT = "VOC (Annotations/, ImageSets/Main/<split>.txt, JPEGImages/)"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGGED = re.compile(r"(.*\S)\s+(?:-1|0|1)")  # a line of a class's list: a name, and whether the class is there
_ROLES = frozenset({"train", "val", "trainval", "test"})
_XML = frozenset({".xml"})


@dataclass(frozen=True)
class _Annotation:
    """Content of one XML file; boxes are left, top, right and bottom edges in pixels from 0."""

    source: Path
    filename: str
    size: tuple[int, int]
    names: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    difficult: tuple[bool, ...]


def splits(folder: DatasetFolder) -> list[str]:
    """Lists the splits in `ImageSets/Main`, without the per-class lists (`cat_train.txt`, whose lines end in 1, 0 or -1)."""
    if not (folder.root / "Annotations").is_dir():
        return []
    lists = sorted((folder.root / "ImageSets" / "Main").glob("*.txt"))
    return [path.stem for path in lists if path.stem in _ROLES or not _is_class_list(folder, path)]


def read(folder: DatasetFolder, split: str) -> Dataset:
    """Reads one split. Classes are all names found in any split, in alphabetical order, so that splits agree.

    VOC counts pixels from 1 and includes the last one: (xmin, ymin, xmax, ymax) covers `[xmin - 1, xmax]` x `[ymin - 1, ymax]`.

    Raises:
        InputError: an annotation that is missing or not VOC XML, a missing image, a box that is not finite or inverted.
    """
    root = folder.root
    listed = _listed(folder, split)
    sources = {name: _source(folder, name) for name in listed}
    missing = [name for name, source in sources.items() if source is None]
    if missing:
        path = root / "Annotations" / f"{shorten(missing[0])}.xml"
        more = f", nor for {len(missing) - 1} more names of {split}.txt" if len(missing) > 1 else ""
        raise InputError(f"{path}: not a VOC annotation (No such file{more})")
    others = {_source(folder, name) for other in splits(folder) if other != split for name in _listed(folder, other)}
    parsed = {source: _parse(folder, source) for source in sorted({*sources.values(), *others} - {None}, key=str) if source}
    names = sorted({name for annotation in parsed.values() for name in annotation.names})
    if not names:
        raise InputError(f"{root / 'Annotations'}: no object is marked in any image")
    class_of = {name: index for index, name in enumerate(names)}
    found = [parsed[source] for source in dict.fromkeys(sources.values()) if source]
    images = [ImageRecord(_image(folder, annotation), *annotation.size) for annotation in found]
    boxes = np.array([box for annotation in found for box in annotation.boxes], np.float64).reshape(-1, 4)
    objects = RawObjects(
        np.repeat(np.arange(len(found)), [len(annotation.names) for annotation in found]).astype(np.int64),
        np.array([class_of[name] for annotation in found for name in annotation.names], np.int64),
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        np.array([difficult for annotation in found for difficult in annotation.difficult], np.bool_),
    )
    return build_dataset(root, split, root, names, images, objects)


def _is_class_list(folder: DatasetFolder, path: Path) -> bool:
    return any(_FLAGGED.fullmatch(line) and _source(folder, line) is None for line in folder.read_lines(path)[:1])


def _listed(folder: DatasetFolder, split: str) -> list[str]:
    """Lists the images of a split: each line is a name, unless it ends in -1, 0 or 1 and no annotation has the whole name."""
    names = []
    for line in folder.read_lines(folder.root / "ImageSets" / "Main" / f"{split}.txt"):
        flagged = _FLAGGED.fullmatch(line)
        names.append(flagged[1] if flagged and _source(folder, line) is None else line)
    return list(dict.fromkeys(names))


def _source(folder: DatasetFolder, name: str) -> Optional[Path]:
    return folder.find([folder.root / "Annotations"], name, _XML)


def _parse(folder: DatasetFolder, source: Path) -> _Annotation:
    try:
        tree = ElementTree.fromstring(folder.read_bytes(source))
        size = int(_text(tree, "size/width")), int(_text(tree, "size/height"))
        if min(size) <= 0:
            raise ValueError(f"size {size[0]}x{size[1]}")
        nodes = list(tree.iter("object"))
        names = tuple(_text(node, "name") for node in nodes)
        corners = [tuple(float(_text(node, f"bndbox/{corner}")) for corner in _CORNERS) for node in nodes]
    except (ElementTree.ParseError, ValueError, LookupError, OverflowError) as error:
        raise InputError(f"{source}: not a VOC annotation ({shorten(str(error))})") from error
    boxes = np.array(corners, np.float64).reshape(-1, 4)
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    check_boxes(sides, lambda index: f"{source}: not a VOC annotation: object {index + 1} {corners[index]}")
    degenerate = (boxes[:, 0] == boxes[:, 2]) | (boxes[:, 1] == boxes[:, 3])
    boxes[~degenerate, :2] -= 1
    difficult = tuple((node.findtext("difficult") or "0").strip().lower() in ("1", "true") for node in nodes)
    return _Annotation(source, tree.findtext("filename") or "", size, names, tuple(map(tuple, boxes.tolist())), difficult)


def _text(node: ElementTree.Element, path: str) -> str:
    text = node.findtext(path)
    if text is None or not text.strip():
        raise ValueError(f"<{path}> is missing")
    return text.strip()


def _image(folder: DatasetFolder, annotation: _Annotation) -> Path:
    """Finds the image by the annotation's own name; the field <filename> is often that of a file long renamed."""
    stem, images = annotation.source.stem, [folder.root / "JPEGImages"]
    field = PureWindowsPath(annotation.filename)
    same = unicodedata.normalize("NFC", field.stem) == unicodedata.normalize("NFC", stem)
    names = [field.name, stem] if same else [stem, annotation.filename]
    for name in filter(None, names):
        path = folder.find(images, name)
        if path is not None:
            return path
    raise InputError(f"{folder.root}: no image for {stem} in JPEGImages/")
