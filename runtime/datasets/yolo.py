"""Reads the YOLO layout of Ultralytics, Label Studio and Roboflow: `data.yaml` (or `classes.txt`), `images/`, `labels/`."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Optional

import cv2
import numpy as np

from runtime.datasets.build import ImageRecord, RawObjects, build_dataset
from runtime.datasets.dataset import Dataset
from runtime.datasets.folder import DatasetFolder, shorten
from runtime.errors import InputError, MissingComponentError
from runtime.media.image import read_image
from runtime.media.image_header import claimed_size
from runtime.media.kinds import IMAGE_SUFFIXES

LAYOUT = "YOLO (data.yaml or classes.txt, images/ and labels/)"
_SPLITS = ("train", "val", "test")
_YAML = ("data", "dataset")
_TOLERANCE = 0.01  # by which rounding and clipping let a share leave 0-1
_TXT = frozenset({".txt"})
_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class _Layout:
    """Classes, and what each split consists of.

    Attributes:
        source: the file that says so.
        names: of the classes.
        parts: by split, folders of images or list files, as written.
        base: what they are relative to, as written.
        keypoints: numbers per object behind the box, in data sets of poses.
    """

    source: Path
    names: list[str]
    parts: dict[str, list[str]]
    base: str = ""
    keypoints: int = 0


@dataclass
class _Rows:
    """Objects read so far, and counts of what was changed."""

    image: list[int] = field(default_factory=list)
    class_ids: list[int] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    polygons: int = 0
    unlabeled: int = 0
    unreadable: list[str] = field(default_factory=list)


def splits(folder: DatasetFolder) -> list[str]:
    """Lists the splits that `data.yaml` names, or the folders in `images/`; `all` where there are none."""
    layout = _layout(folder)
    return sorted(layout.parts) if layout else []


def read(folder: DatasetFolder, split: str) -> Dataset:
    """Reads one split. An image without a label file has no objects; polygons are reduced to their boxes.

    Raises:
        InputError: a split that is not there, a class that has no name, or a label that is no box in shares of the image.
        MissingComponentError: PyYAML is not installed.
    """
    layout = _layout(folder)
    if layout is None:
        raise InputError(f"{folder.root}: not the YOLO layout")
    rows = _Rows()
    images: list[ImageRecord] = []
    for path in _image_files(folder, layout, split):
        size = _size(path)
        if size is None:
            rows.unreadable.append(path.name)
            continue
        _read_labels(folder, layout, path, len(images), size, rows)
        images.append(ImageRecord(path, *size))
    objects = RawObjects(
        np.array(rows.image, np.int64),
        np.array(rows.class_ids, np.int64),
        np.array(rows.boxes, np.float64).reshape(-1, 4),
        np.zeros(len(rows.image), np.bool_),
    )
    notes, losses = _report(f"{layout.source}: {split}", rows)
    return build_dataset(folder.root, split, layout.source, layout.names, images, objects, notes=notes, losses=losses)


def _report(where: str, rows: _Rows) -> tuple[list[str], list[str]]:
    """Says what was changed without loss, and what was left out."""
    notes, losses = [], []
    if rows.polygons:
        notes.append(f"{where}: {rows.polygons} of {len(rows.image)} labels are polygons, reduced to their boxes")
    if rows.unlabeled:
        notes.append(f"{where}: {rows.unlabeled} images have no label file and count as images without objects")
    if rows.unreadable:
        example = shorten(rows.unreadable[0])
        losses.append(f"{where}: {len(rows.unreadable)} images cannot be read and are left out, such as {example}")
    return notes, losses


def _layout(folder: DatasetFolder) -> Optional[_Layout]:
    for path in sorted(folder.root.glob("*.y*ml"), key=lambda path: (path.stem not in _YAML, path.name)):
        try:
            content = _read_yaml(folder, path)
        except InputError:
            if path.stem in _YAML:
                raise
            continue  # it need not belong to the data
        if isinstance(content, dict) and "names" in content and any(content.get(key) for key in _SPLITS):
            return _from_yaml(folder, path, content)
    classes = folder.root / "classes.txt"
    if classes.is_file() and (folder.root / "images").is_dir():
        inside = sorted(path.name for path in (folder.root / "images").iterdir() if path.is_dir())
        parts = {name: [f"images/{name}"] for name in inside} or {"all": ["images"]}
        return _Layout(classes, folder.read_lines(classes), parts)
    return None


def _read_yaml(folder: DatasetFolder, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingComponentError(f"{path}: PyYAML is needed to read it; run `pip install pyyaml`") from error
    try:
        return yaml.safe_load(folder.read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not readable as YAML ({str(error).splitlines()[0] if str(error) else error})") from error


def _from_yaml(folder: DatasetFolder, path: Path, content: dict[Any, Any]) -> _Layout:
    parts = {}
    for key in _SPLITS:
        value = content.get(key)
        listed = value if isinstance(value, list) else [value] if value else []
        if not all(isinstance(item, str) for item in listed):
            raise InputError(f"{path}: {key} is {reprlib.repr(value)}, expected a folder, a list file, or several")
        if listed:
            parts[key] = listed
    shape = content.get("kpt_shape")
    keypoints = math.prod(shape) if isinstance(shape, list) and all(isinstance(item, int) for item in shape) else 0
    return _Layout(path, _names(path, content["names"], content.get("nc")), parts, str(content.get("path") or ""), keypoints)


def _names(path: Path, names: Any, count: Any) -> list[str]:
    if isinstance(names, dict):
        try:
            by_id = {int(key): name for key, name in names.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: names has a key that is no class id ({error}); expected 0, 1, 2, ...") from error
        if sorted(by_id) != list(range(len(names))):
            raise InputError(
                f"{path}: names has the ids {reprlib.repr(sorted(by_id))}; expected 0 to {len(names) - 1}, each once"
            )
        names = [by_id[index] for index in range(len(by_id))]
    if not isinstance(names, list) or not all(isinstance(name, (str, int, float)) for name in names):
        raise InputError(f"{path}: names is {reprlib.repr(names)}, expected a list or a map of class names")
    if isinstance(count, int) and count != len(names):
        raise InputError(f"{path}: nc is {count}, but names has {len(names)} classes; correct one of them")
    return [str(name) for name in names]


def _place(folder: DatasetFolder, layout: _Layout, item: str) -> Path:
    """Finds a folder or list of images relative to the YAML file's own folder, whatever machine its paths were written for.

    `path:` and leading parts that do not exist here (`../train/images`, `/content/data/train/images`) are left out.

    Raises:
        InputError: nothing of that name is in the folder.
    """
    parts = [part for part in item.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    prefix = [part for part in layout.base.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    candidates = ["/".join((*prefix, *parts)), *("/".join(parts[start:]) for start in range(len(parts)))]
    for candidate in candidates:
        if candidate and (folder.root / candidate).exists():
            folder.check_inside(folder.root / candidate)
            return folder.root / candidate
    source = layout.source
    raise InputError(f"{source}: {item!r} is not in {folder.root}; write paths relative to the folder of {source.name}")


def _image_files(folder: DatasetFolder, layout: _Layout, split: str) -> list[Path]:
    """Lists the images of a split, in the order of their names or of the lists; each once."""
    found: list[Path] = []
    for part in layout.parts[split]:
        place = _place(folder, layout, part)
        if place.is_dir():
            names = [name for name in folder.files(place) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
            found += [place / name for name in names]
            continue
        missing = []
        for line in folder.read_lines(place):
            path = folder.find([folder.root, place.parent], line)
            found += [path] if path else []
            missing += [] if path else [line]
        if missing:
            raise InputError(f"{place}: {len(missing)} of its images are not in {folder.root}, such as {missing[0]!r}")
    return list(dict.fromkeys(found))


def _size(path: Path) -> Optional[tuple[int, int]]:
    """Reads (width, height) of an image as it is shown, from its header where that says all; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
        size = claimed_size(head)
        if size is not None and b"Exif" not in head and not head.startswith((b"II", b"MM")):
            return size
        reduced = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_8) if size is not None and b"Exif" in head else None
        if size is not None and reduced is not None:
            is_turned = (reduced.shape[1] - reduced.shape[0]) * (size[0] - size[1]) < 0
            return size[::-1] if is_turned else size
    except (OSError, ValueError, cv2.error):
        pass
    try:
        height, width = read_image(path).shape[:2]
    except InputError:
        return None
    return width, height


def _read_labels(folder: DatasetFolder, layout: _Layout, image: Path, index: int, size: tuple[int, int], rows: _Rows) -> None:
    relative = image.relative_to(folder.root)
    above = list(relative.parent.parts)
    if "images" in above:
        last = len(above) - 1 - above[::-1].index("images")
        above[last] = "labels"
    path = folder.find([folder.root.joinpath(*above)], f"{relative.stem}.txt", _TXT)
    if path is None:
        rows.unlabeled += 1
        return
    for number, line in enumerate(folder.read_lines(path), 1):
        class_id, (left, top, right, bottom), is_polygon = _parse(layout, f"{path}: line {number}", line)
        rows.image.append(index)
        rows.class_ids.append(class_id)
        rows.boxes.append((left * size[0], top * size[1], (right - left) * size[0], (bottom - top) * size[1]))
        rows.polygons += is_polygon


def _parse(layout: _Layout, where: str, line: str) -> tuple[int, tuple[float, float, float, float], bool]:
    """Parses a line: the class and a box (center and sides) or a polygon, in shares of the image; returns corners."""
    try:
        class_id, *values = (float(text) for text in line.split())
    except ValueError as error:
        raise InputError(f"{where}: {reprlib.repr(line)} is not a label; expected a class id and numbers") from error
    if class_id not in range(len(layout.names)):
        raise InputError(f"{where}: class {class_id:g} has no name; {layout.source.name} names 0 to {len(layout.names) - 1}")
    values = values[:4] if layout.keypoints and len(values) == 4 + layout.keypoints else values
    is_polygon = len(values) >= 6 and len(values) % 2 == 0
    if len(values) != 4 and not is_polygon:
        raise InputError(
            f"{where}: {len(values)} numbers behind the class; expected 4 (a box) or at least 3 points (a polygon)"
        )
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):
        raise InputError(
            f"{where}: {reprlib.repr(line)} leaves 0-1; labels must be shares of the image: divide x and width by the image's"
            " width, y and height by its height"
        )
    if is_polygon:
        return int(class_id), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])), True
    x, y, width, height = values
    if width < 0 or height < 0:
        raise InputError(f"{where}: {reprlib.repr(line)} has a negative side")
    return int(class_id), (x - width / 2, y - height / 2, x + width / 2, y + height / 2), False
