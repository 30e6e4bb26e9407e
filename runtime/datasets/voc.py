"""Reads the Pascal VOC layout: `Annotations/*.xml`, `ImageSets/Main/<split>.txt`, `JPEGImages/`."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Optional

from runtime.datasets.dataset import Dataset, LabeledImage, find_image, labeled_image, report_dropped
from runtime.errors import InputError
from runtime.media.kinds import IMAGE_SUFFIXES

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def splits(root: Path) -> list[str]:
    """Lists the splits in `ImageSets/Main`, without the per-class lists (`cat_train.txt`, whose lines end in 1, 0 or -1)."""
    if not (root / "Annotations").is_dir():
        return []
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    return [path.stem for path in lists if not any(len(line.split()) > 1 for line in _lines(path)[:1])]


def read(root: Path, split: str) -> Dataset:
    """Reads one split. Classes are all names found in any split, in alphabetical order, so that splits agree.

    VOC counts pixels from 1 and includes the last one: (xmin, ymin, xmax, ymax) covers `[xmin - 1, xmax]` x `[ymin - 1, ymax]`.

    Raises:
        InputError: an annotation that is missing or not VOC XML, a missing image, a box that is not finite or inverted.
    """
    stems = {stem for name in splits(root) for stem in _stems(root, name) if name == split or _annotation(root, stem).is_file()}
    everything = {stem: _parse(root, stem) for stem in sorted(stems)}
    names = tuple(sorted({thing["name"] for parsed in everything.values() for thing in parsed["objects"]}))
    if not names:
        raise InputError(f"{root / 'Annotations'}: no object is marked in any image")
    class_of = {name: index for index, name in enumerate(names)}
    listed = _stems(root, split)
    images: list[LabeledImage] = []
    annotations: list[dict[str, Any]] = []
    for image_id, stem in enumerate(listed, 1):
        parsed = everything[stem]
        image = labeled_image(
            image_id,
            _image(root, stem, parsed["filename"]),
            parsed["size"],
            [thing["box"] for thing in parsed["objects"]],
            [class_of[thing["name"]] for thing in parsed["objects"]],
            [thing["difficult"] for thing in parsed["objects"]],
        )
        images.append(image)
        for (x1, y1, x2, y2), class_id, crowd in zip(image.boxes.tolist(), image.class_ids.tolist(), image.crowd.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(crowd),
                }
            )
    report_dropped(root, sum(len(everything[stem]["objects"]) for stem in listed), len(annotations))
    return Dataset(root, split, names, tuple(range(1, len(names) + 1)), tuple(images), tuple(annotations))


def _stems(root: Path, split: str) -> list[str]:
    lines = _lines(root / "ImageSets" / "Main" / f"{split}.txt")
    return list(dict.fromkeys(line.split()[0] for line in lines))


def _lines(source: Path) -> list[str]:
    """Reads the lines of a list that are not blank."""
    try:
        return [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not a readable list of image names ({error})") from error


def _annotation(root: Path, stem: str) -> Path:
    return root / "Annotations" / f"{stem}.xml"


def _parse(root: Path, stem: str) -> dict[str, Any]:
    source = _annotation(root, stem)
    try:
        tree = ElementTree.fromstring(source.read_bytes())
        size = int(_text(tree, "size/width")), int(_text(tree, "size/height"))
        if min(size) <= 0:
            raise ValueError(f"size {size[0]}x{size[1]}")
        objects = [_object(node) for node in tree.iter("object")]
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{source}: not a VOC annotation ({error})") from error
    return {"filename": tree.findtext("filename"), "size": size, "objects": objects}


def _object(node: ElementTree.Element) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(_text(node, f"bndbox/{corner}")) for corner in _CORNERS)
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 < x1 or y2 < y1:
        raise ValueError(f"box ({x1}, {y1}, {x2}, {y2}) is not finite or inverted")
    degenerate = x1 == x2 or y1 == y2
    return {
        "name": _text(node, "name"),
        "box": (x1, y1, x2, y2) if degenerate else (x1 - 1, y1 - 1, x2, y2),
        "difficult": node.findtext("difficult", "0").strip() == "1",
    }


def _text(node: ElementTree.Element, path: str) -> str:
    text = node.findtext(path)
    if text is None or not text.strip():
        raise ValueError(f"<{path}> is missing")
    return text.strip()


def _image(root: Path, stem: str, filename: Optional[str]) -> Path:
    """Finds the image by the annotation's own file name, else by the list's name with any image suffix."""
    candidates = ([filename] if filename else []) + [f"{stem}{suffix}" for suffix in sorted(IMAGE_SUFFIXES)]
    for candidate in candidates:
        path = find_image([root / "JPEGImages"], candidate)
        if path is not None:
            return path
    raise InputError(f"{root}: no image for {stem} in JPEGImages/")
