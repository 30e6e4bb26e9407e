"""Reads the COCO layout: `annotations/instances_<split>.json`, images in `<split>/`, `images/<split>/` or `images/`."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from runtime.datasets.dataset import Dataset, find_image, labeled_image, report_dropped
from runtime.errors import InputError

_PREFIX = "instances_"


def splits(root: Path) -> list[str]:
    """Lists the splits that have an `annotations/instances_<split>.json`."""
    return sorted(path.stem[len(_PREFIX) :] for path in (root / "annotations").glob(f"{_PREFIX}*.json"))


def read(root: Path, split: str) -> Dataset:
    """Reads one split. Category ids may be sparse; classes are ordered by category id.

    Raises:
        InputError: not JSON, not COCO, a missing image, an unknown image or category, a box that is NaN or has a
            negative side. The message names the file and the record.
    """
    source = root / "annotations" / f"{_PREFIX}{split}.json"
    content = _load(source)
    categories = sorted((_category(source, record) for record in content["categories"]), key=lambda item: item[0])
    class_of = {category_id: index for index, (category_id, _) in enumerate(categories)}
    names = tuple(name for _, name in categories)
    if not categories or len(class_of) != len(categories) or len(set(names)) != len(names):
        raise InputError(f"{source}: categories must exist and have distinct ids and names")

    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    sizes = {image["id"]: image for image in (_image(source, record) for record in content["images"])}
    if len(sizes) != len(content["images"]):
        raise InputError(f"{source}: two images have the same id")
    annotations = [_annotation(source, i, record, sizes, class_of) for i, record in enumerate(content["annotations"])]
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)

    folders = [root / split, root / "images" / split, root / "images", root]
    images = []
    for image_id, record in sizes.items():
        path = find_image(folders, record["file_name"])
        if path is None:
            raise InputError(f"{source}: image {record['file_name']} is in none of {split}/, images/{split}/, images/")
        marked = by_image[image_id]
        images.append(
            labeled_image(
                image_id,
                path,
                (record["width"], record["height"]),
                [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in marked)],
                [class_of[a["category_id"]] for a in marked],
                [a["iscrowd"] for a in marked],
            )
        )
    report_dropped(source, len(annotations), sum(len(image.boxes) for image in images))
    return Dataset(root, split, names, tuple(class_of), tuple(images), tuple(annotations))


def _load(source: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not readable as JSON ({error})") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise InputError(f"{source}: not a COCO annotation file; expected an object with the lists {', '.join(keys)}")
    return content


def _category(source: Path, record: Any) -> tuple[int, str]:
    try:
        if not isinstance(record["name"], str):
            raise TypeError
        return _integer(record["id"]), record["name"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{source}: bad category {_short(record)}; expected an integer id and a name") from error


def _image(source: Path, record: Any) -> dict[str, Any]:
    try:
        image = {key: _integer(record[key]) for key in ("id", "width", "height")}
        if image["width"] <= 0 or image["height"] <= 0 or not isinstance(record["file_name"], str):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{source}: bad image {_short(record)}; expected id, file_name, and positive width and height"
        ) from error
    return {**image, "file_name": record["file_name"]}


def _annotation(source: Path, index: int, record: Any, images: dict[int, Any], classes: dict[int, int]) -> dict[str, Any]:
    """Checks an annotation record; ids count anew from 1, since pycocotools takes an id of 0 for `not matched`."""
    try:
        image_id, category_id = _integer(record["image_id"]), _integer(record["category_id"])
        x, y, width, height = (float(value) for value in record["bbox"])
        area = float(record.get("area", width * height))
        crowd = _integer(record.get("iscrowd", 0))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{source}: bad annotation {_short(record)}; expected image_id, category_id and a bbox of 4 numbers"
        ) from error
    if not all(map(math.isfinite, (x, y, width, height, area))) or width < 0 or height < 0:
        raise InputError(f"{source}: annotation {_short(record)} has a box that is not finite or has a negative side")
    if image_id not in images:
        raise InputError(f"{source}: annotation {_short(record)} refers to image {image_id}, which is not listed")
    if category_id not in classes:
        raise InputError(f"{source}: annotation {_short(record)} refers to category {category_id}, which is not listed")
    return {
        "id": index + 1,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, width, height],
        "area": area,
        "iscrowd": int(crowd != 0),
    }


def _integer(value: Any) -> int:
    if isinstance(value, (str, bool)) or int(value) != value:
        raise ValueError(f"{value!r} is not an integer")
    return int(value)


def _short(record: Any) -> str:
    if isinstance(record, dict):
        record = {key: record[key] for key in ("id", "name", "file_name", "bbox") if key in record}
    text = repr(record)
    return text if len(text) <= 120 else text[:117] + "..."
