"""Writes what was found in many images into single files, each whole or not at all: JSON lines, CSV, COCO."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Callable, TextIO

from runtime.files import atomic_write
from runtime.results.records import ROW_COLUMNS, Record, to_coco_results, to_detections, to_rows

Records = Callable[[], Iterable[Record]]
"""Gives all records, as often as it is called."""

JSONL, CSV, COCO_RESULTS, COCO_IMAGES = "detections.jsonl", "detections.csv", "coco_results.json", "coco_images.json"
TABLES = ("jsonl", "csv", "coco")
"""The kinds of tables."""

_LARGEST_ID = 1 << 53  # of an image, so that every JSON reader keeps it exactly


def write_tables(folder: Path, kinds: Sequence[str], records: Records, class_names: Sequence[str]) -> list[Path]:
    """Writes the tables of the given kinds into a folder; returns their paths.

    Args:
        folder: where they go.
        kinds: of `TABLES`; others are passed over.
        records: of all images and frames.
        class_names: by class id.

    Raises:
        OutputError: one cannot be written.
    """
    written = []
    if "jsonl" in kinds:
        written.append(write_jsonl(folder / JSONL, records()))
    if "csv" in kinds:
        written.append(write_csv(folder / CSV, records()))
    if "coco" in kinds:
        written += write_coco(folder, records, class_names)
    return written


def write_jsonl(path: Path, records: Iterable[Record]) -> Path:
    """Writes one JSON line a record."""
    with _text(path) as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
    return path


def write_csv(path: Path, records: Iterable[Record]) -> Path:
    """Writes a header and one row a detection, see `to_rows`."""
    with _text(path) as file:
        writer = csv.writer(file)
        writer.writerow(ROW_COLUMNS)
        for record in records:
            writer.writerows(to_rows(record))
    return path


def write_coco(folder: Path, records: Records, class_names: Sequence[str]) -> list[Path]:
    """Writes COCO's result records, and the images and categories that their ids mean.

    `COCO(images).loadRes(results)` of pycocotools reads the two. An image's id is the number that it is called by where all are
    called by different numbers, as COCO's own are; else they are counted from 1. A category's id is the class id plus 1.
    """
    ids = _image_ids(records())
    category_ids = range(1, len(class_names) + 1)
    categories = [{"id": k, "name": name} for k, name in zip(category_ids, class_names)]
    with _text(folder / COCO_RESULTS) as results, _text(folder / COCO_IMAGES) as images:
        _write_list(
            results,
            (
                {**result, "bbox": [round(value, 2) for value in result["bbox"]], "score": round(result["score"], 5)}
                for image_id, record in zip(ids, records())
                for result in to_coco_results(image_id, to_detections(record), category_ids)
            ),
        )
        results.write("\n")
        images.write('{"images": ')
        _write_list(images, (_image_entry(image_id, record) for image_id, record in zip(ids, records())))
        images.write(f', "categories": {json.dumps(categories)}}}\n')
    return [folder / COCO_RESULTS, folder / COCO_IMAGES]


def _image_entry(image_id: int, record: Record) -> dict[str, Any]:
    entry = {"id": image_id, "file_name": record["source"], "width": record["width"], "height": record["height"]}
    return {**entry, "frame": record["frame"]} if "frame" in record else entry


def _image_ids(records: Iterable[Record]) -> Sequence[int]:
    """Chooses the id of each record's image."""
    own: dict[int, None] = {}
    count, is_numbered = 0, True
    for record in records:
        count += 1
        stem = PurePath(record["source"]).stem
        is_numbered = is_numbered and "frame" not in record and stem.isascii() and stem.isdigit() and len(stem) < 17
        if is_numbered:
            own[int(stem)] = None
    return list(own) if is_numbered and len(own) == count and max(own, default=0) < _LARGEST_ID else range(1, count + 1)


def _write_list(file: TextIO, items: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON list, one item a line."""
    separator = "[\n"
    for item in items:
        file.write(separator + json.dumps(item))
        separator = ",\n"
    file.write("[]" if separator == "[\n" else "\n]")


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """Opens a text file that takes its place when the block ends without an error."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file
