"""Reads a COCO annotation file, column by column: files of a million objects are common."""

from __future__ import annotations

import contextlib
import itertools
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
_LONGEST_NUMBER = 40  # digits; longer ids are compared as texts
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
    position_of = _index([image.source_id for image in images])
    class_of = _index([category_id for category_id, _ in categories])
    objects = _objects(source, content.pop("annotations"), position_of, class_of)
    folder.forget_json(source)  # its million records take more memory than all that follows
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
    paths = [folder.find_text(image_folders, name) for name in names]
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


def _objects(
    source: Path, records: Sequence[Any], position_of: dict[SourceId, int], class_of: dict[SourceId, int]
) -> RawObjects:
    def slowly(field: str, read: Callable[[Any], Value], expected: str) -> list[Value]:
        return _column(source, "annotation", records, field, read, expected)

    boxes = _quick_boxes(records)
    if boxes is None:
        boxes = np.array(slowly("bbox", lambda record: _box(record["bbox"]), "4 numbers"), np.float64).reshape(-1, 4)
    crowd = _quick_numbers(records, "iscrowd", range(2))
    if crowd is None:
        crowd = np.array(slowly("iscrowd", lambda record: _flag(record.get("iscrowd")), "0 or 1"), np.float64)
    check_boxes(boxes, lambda index: f"{source}: annotation {_short(records[index])}")
    areas = _quick_numbers(records, "area")
    if areas is None:
        areas = np.array(slowly("area", lambda record: _area(record.get("area")), "a finite number"), np.float64)
    images = _quick_ids(records, "image_id")
    if images is None:
        images = slowly("image_id", lambda record: _id(record["image_id"]), "a number or text")
    categories = _quick_ids(records, "category_id")
    if categories is None:
        categories = slowly("category_id", lambda record: _id(record["category_id"]), "a number or text")
    areas = np.where(areas < 0, boxes[:, 2] * boxes[:, 3], areas)
    return RawObjects(
        _positions(source, records, images, position_of, "image"),
        _positions(source, records, categories, class_of, "category"),
        boxes,
        crowd != 0,
        areas,
    )


def _quick_ids(records: Sequence[Any], field: str) -> Optional[list[SourceId]]:
    """Reads whole numbers of all records at once; None where one of them is anything else."""
    try:
        values = [record[field] for record in records]
    except _WRONG:
        return None
    return values if set(map(type, values)) <= {int} else None


def _quick_boxes(records: Sequence[Any]) -> Optional[NDArray[np.float64]]:
    """Reads all boxes at once, float64 `[N, 4]`; None where one of them is not 4 numbers."""
    try:
        boxes = [record["bbox"] for record in records]
        if set(map(type, boxes)) - {list} or set(map(len, boxes)) - {4}:
            return None
        return np.fromiter(itertools.chain.from_iterable(boxes), np.float64, 4 * len(boxes)).reshape(-1, 4)
    except _WRONG:
        return None


def _quick_numbers(records: Sequence[Any], field: str, allowed: Optional[range] = None) -> Optional[NDArray[np.float64]]:
    """Reads a number of all records at once, float64 `[N]`; None where one is missing, negative or not finite."""
    try:
        values = [record[field] for record in records]
        numbers = np.array(values, np.float64) if set(map(type, values)) <= {int, float} else None
    except _WRONG:
        return None
    if numbers is None or not (np.isfinite(numbers) & (numbers >= 0)).all():
        return None
    return None if allowed is not None and not np.isin(numbers, allowed).all() else numbers


def _positions(
    source: Path, records: Sequence[Any], ids: Sequence[SourceId], of: dict[SourceId, int], kind: str
) -> NDArray[np.int64]:
    found = np.fromiter(map(of.get, ids, itertools.repeat(-1)), np.int64, len(ids))
    if (found < 0).any():
        index = int((found < 0).argmax())
        raise InputError(
            f"{source}: annotation {_short(records[index])} refers to {kind} {reprlib.repr(ids[index])}, which is not listed"
        )
    return found


def _index(ids: Sequence[Optional[SourceId]]) -> dict[SourceId, int]:
    """Returns the position of each id, as a number and as text: some tools write 7 in one place and "7" in another."""
    positions: dict[SourceId, int] = {}
    for position, value in enumerate(ids):
        if value is not None:
            positions[value] = positions[str(value)] = position
            if isinstance(value, str) and len(value) < _LONGEST_NUMBER and value.isdecimal() and str(int(value)) == value:
                positions[int(value)] = position
    return positions


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
