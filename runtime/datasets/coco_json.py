"""Reads a COCO annotation file, column by column: files of a million objects are common."""

from __future__ import annotations

import contextlib
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.build import ImageRecord, RawObjects, build_dataset, check_boxes
from runtime.datasets.dataset import Dataset, SourceId
from runtime.datasets.folder import DatasetFolder, shorten
from runtime.errors import InputError

_LISTS = ("images", "annotations", "categories")
_WRONG = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
Record = dict[str, Any]
Value = TypeVar("Value")


def is_coco(content: Any) -> bool:
    """Tells whether JSON content is an object with the three lists of a COCO annotation file."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in _LISTS)


def read_coco_json(
    folder: DatasetFolder, source: Path, split: str, image_folders: Sequence[Path], siblings: Sequence[Path] = ()
) -> Dataset:
    """Reads one annotation file. Ids may be numbers or texts of any size; classes are ordered by category id.

    Args:
        folder: the dataset folder.
        source: the annotation file.
        split: name of the split that it holds.
        image_folders: where `file_name` is looked up, in this order.
        siblings: annotation files of the other splits: a root category is left out only if it owns nothing there either.

    Raises:
        InputError: not JSON, not COCO, a missing image, an unknown image or category, a box that is NaN, has a negative side
            or is in another unit than pixels. The message names the file and the record.
    """
    content = _load(folder, source)
    categories, notes = _categories(folder, source, content, siblings)
    images = _images(folder, source, content["images"], image_folders)
    position_of = {_key(image.source_id): index for index, image in enumerate(images)}
    class_of = {_key(category_id): index for index, (category_id, _) in enumerate(categories)}
    objects = _objects(source, content["annotations"], position_of, class_of)
    return build_dataset(
        folder.root,
        split,
        source,
        [name for _, name in categories],
        images,
        objects,
        source_category_ids=[category_id for category_id, _ in categories],
        notes=notes,
        clip_truth=False,
    )


def _load(folder: DatasetFolder, source: Path) -> dict[str, list[Any]]:
    content = folder.read_json(source)
    if not is_coco(content):
        raise InputError(f"{source}: not a COCO annotation file; expected an object with the lists {', '.join(_LISTS)}")
    return dict(content)


def _column(
    source: Path, kind: str, records: Sequence[Any], field: str, read: Callable[[Any], Value], expected: str
) -> list[Value]:
    """Reads one field of all records; raises InputError that names the first record where it is missing or wrong."""
    try:
        return [read(record) for record in records]
    except _WRONG:
        for record in records:
            try:
                read(record)
            except _WRONG as error:
                found = reprlib.repr(record[field]) if isinstance(record, dict) and field in record else "missing"
                raise InputError(f"{source}: bad {kind} {_short(record)}: {field} is {found}, expected {expected}") from error
        raise


def _categories(
    folder: DatasetFolder, source: Path, content: dict[str, list[Any]], siblings: Sequence[Path]
) -> tuple[list[tuple[SourceId, str]], list[str]]:
    """Reads (id, name) of each class, in the order of their ids; leaves out a root category that owns no object."""
    records = content["categories"]
    ids = _column(source, "category", records, "id", lambda record: _id(record["id"]), "a number or text")
    names = _column(source, "category", records, "name", lambda record: _text(record["name"]), "a text")
    if len({_key(category_id) for category_id in ids}) < len(ids):
        raise InputError(f"{source}: two categories have the same id; they need distinct ids and names")
    root = _find_root(records)
    if root is not None and not any(_owns(found, ids[root]) for found in (content, *_readable(folder, siblings))):
        note = f"{source}: the root category {names[root]!r} (id {ids[root]}) owns no object and is left out"
        kept = [index for index in range(len(ids)) if index != root]
    else:
        note, kept = "", list(range(len(ids)))
    found = sorted(((ids[index], names[index]) for index in kept), key=lambda item: (isinstance(item[0], str), item[0]))
    return found, [note] if note else []


def _find_root(records: Sequence[Record]) -> Optional[int]:
    """Returns the index of the only category whose supercategory is `none` beside others with one of their own, if any."""
    roots = [index for index, record in enumerate(records) if record.get("supercategory") == "none"]
    return roots[0] if len(roots) == 1 and len(records) > 1 else None


def _readable(folder: DatasetFolder, sources: Sequence[Path]) -> Iterator[dict[str, list[Any]]]:
    for source in sources:
        with contextlib.suppress(InputError):  # it is named when that split is read
            yield _load(folder, source)


def _owns(content: dict[str, list[Any]], category_id: SourceId) -> bool:
    key = _key(category_id)
    return any(isinstance(item, dict) and _key(item.get("category_id")) == key for item in content["annotations"])


def _images(folder: DatasetFolder, source: Path, records: Sequence[Any], image_folders: Sequence[Path]) -> list[ImageRecord]:
    ids = _column(source, "image", records, "id", lambda record: _id(record["id"]), "a number or text")
    if len({_key(image_id) for image_id in ids}) < len(ids):
        doubled = Counter(map(_key, ids)).most_common(1)[0][0]
        raise InputError(f"{source}: two images have the same id, {shorten(doubled)}")
    widths = _column(source, "image", records, "width", lambda record: _side(record["width"]), "a positive whole number")
    heights = _column(source, "image", records, "height", lambda record: _side(record["height"]), "a positive whole number")
    names = _column(source, "image", records, "file_name", lambda record: _text(record["file_name"]), "a text")
    paths = [folder.find(image_folders, name) for name in names]
    missing = [name for name, path in zip(names, paths) if path is None]
    if missing:
        looked = ", ".join(str(path.relative_to(folder.root)) for path in image_folders)
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"{source}: image {shorten(missing[0])}{more} is in none of {looked} of {folder.root}")
    return [
        ImageRecord(path, width, height, image_id)
        for path, width, height, image_id in zip(paths, widths, heights, ids)
        if path is not None
    ]


def _objects(source: Path, records: Sequence[Any], position_of: dict[str, int], class_of: dict[str, int]) -> RawObjects:
    def column(field: str, read: Callable[[Any], Value], expected: str) -> list[Value]:
        return _column(source, "annotation", records, field, read, expected)

    images = column("image_id", lambda record: _key(_id(record["image_id"])), "a number or text")
    categories = column("category_id", lambda record: _key(_id(record["category_id"])), "a number or text")
    boxes = np.array(column("bbox", lambda record: _box(record["bbox"]), "4 numbers"), np.float64).reshape(-1, 4)
    crowd = column("iscrowd", lambda record: _flag(record.get("iscrowd")), "0 or 1")
    check_boxes(boxes, lambda index: f"{source}: annotation {_short(records[index])}")
    areas = np.array(column("area", lambda record: _area(record.get("area")), "a finite number"), np.float64)
    areas = np.where(areas < 0, boxes[:, 2] * boxes[:, 3], areas)
    return RawObjects(
        _positions(source, records, images, position_of, "image"),
        _positions(source, records, categories, class_of, "category"),
        boxes,
        np.array(crowd, np.bool_),
        areas,
    )


def _positions(source: Path, records: Sequence[Any], keys: Sequence[str], of: dict[str, int], kind: str) -> NDArray[np.int64]:
    found = [of.get(key, -1) for key in keys]
    if -1 in found:
        record = records[found.index(-1)]
        raise InputError(
            f"{source}: annotation {_short(record)} refers to {kind} {reprlib.repr(record[f'{kind}_id'])}, which is not listed"
        )
    return np.array(found, np.int64)


def _id(value: Any) -> SourceId:
    if type(value) is int or type(value) is str:
        return value
    if isinstance(value, float) and value == int(value):
        return int(value)
    raise TypeError(value)


def _key(value: Any) -> str:
    """Returns the form of an id that is compared: some tools write 7 in one place and "7" in another."""
    return value if type(value) is str else str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _side(value: Any) -> int:
    number = _id(value)
    if isinstance(number, str) or number <= 0 or number > 1 << 31:
        raise ValueError(value)
    return number


def _box(value: Any) -> tuple[float, float, float, float]:
    x, y, width, height = value
    return float(x), float(y), float(width), float(height)


def _flag(value: Any) -> bool:
    """Reads `iscrowd`; none, false and null are no crowd."""
    if value is None:
        return False
    if isinstance(value, str) or int(value) != value:
        raise TypeError(value)
    return bool(value != 0)


def _area(value: Any) -> float:
    """Reads `area`; -1 where it is missing or negative, which stands for that of the box."""
    number = -1.0 if value is None else float(value)
    if not abs(number) < float("inf"):
        raise ValueError(value)
    return number


def _short(record: Any) -> str:
    if isinstance(record, dict):
        record = {key: record[key] for key in ("id", "name", "file_name", "bbox") if key in record}
    return shorten(repr(record))
