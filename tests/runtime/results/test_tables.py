"""JSON lines, CSV, YOLO and COCO of the same detections, and readers that agree with them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from runtime.detections import Detections
from runtime.errors import InputError, OutputError
from runtime.results.classes import parse_classes
from runtime.results.records import Record, to_detections, to_record, to_yolo
from runtime.results.tables import COCO_IMAGES, COCO_RESULTS, CSV, JSONL, TABLES, write_tables

NAMES = ["dot", 'ring, "wide"']
IMAGE = np.zeros((50, 100, 3), np.uint8)
FOUND = Detections.from_arrays([[10, 5, 30, 25], [0, 0, 100, 50]], [0.9, 0.5], [1, 0])


def records(*sources: str) -> list[Record]:
    return [to_record(source, IMAGE, FOUND if i != 1 else Detections.empty(), NAMES) for i, source in enumerate(sources)]


def write(folder: Path, items: list[Record]) -> None:
    assert len(write_tables(folder, TABLES, lambda: items, NAMES)) == 4


def test_tables(tmp_path: Path) -> None:
    items = [*records("a.png", "b.png"), to_record("film.mp4", IMAGE, FOUND, NAMES, frame=7)]
    write(tmp_path, items)
    assert [json.loads(line) for line in (tmp_path / JSONL).read_text().splitlines()] == items
    with open(tmp_path / CSV, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["frame"], row["class_name"], row["x2"]) for row in rows] == [
        ("a.png", "", NAMES[1], "30.0"),
        ("a.png", "", NAMES[0], "100.0"),
        ("film.mp4", "7", NAMES[1], "30.0"),
        ("film.mp4", "7", NAMES[0], "100.0"),
    ]
    with redirect_stdout(StringIO()):
        truth = COCO(str(tmp_path / COCO_IMAGES))
        loaded = truth.loadRes(str(tmp_path / COCO_RESULTS))
    assert [(image["id"], image["file_name"]) for image in truth.dataset["images"]] == [
        (1, "a.png"),
        (2, "b.png"),
        (3, "film.mp4"),
    ]
    assert [(one["image_id"], truth.cats[one["category_id"]]["name"], one["bbox"]) for one in loaded.anns.values()] == [
        (1, NAMES[1], [10.0, 5.0, 20.0, 20.0]),
        (1, NAMES[0], [0.0, 0.0, 100.0, 50.0]),
        (3, NAMES[1], [10.0, 5.0, 20.0, 20.0]),
        (3, NAMES[0], [0.0, 0.0, 100.0, 50.0]),
    ]
    np.testing.assert_array_equal(to_detections(items[0]).boxes, FOUND.boxes)


@pytest.mark.parametrize(
    ("sources", "ids"),
    [
        ((), []),
        (("000000397133.jpg", "x/41.png"), [397133, 41]),
        (("1.png", "sub/1.png"), [1, 2]),
        (("7.png", "a.png"), [1, 2]),
        (("99999999999999999999.png", "1.png"), [1, 2]),
        (("²", "1"), [1, 2]),
    ],
)
def test_coco_ids(sources: tuple[str, ...], ids: list[int], tmp_path: Path) -> None:
    write(tmp_path, records(*sources))
    assert [image["id"] for image in json.loads((tmp_path / COCO_IMAGES).read_text())["images"]] == ids


def test_names_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path, records("caf\udce9.png"))
    assert "caf\\udce9.png" in (tmp_path / CSV).read_text()


def test_a_full_disk_leaves_no_half(tmp_path: Path, full_disk: Callable[..., AbstractContextManager[None]]) -> None:
    items = records("a.png") * 100
    with full_disk(), pytest.raises(OutputError, match="cannot write"):
        write(tmp_path, items)
    assert not list(tmp_path.iterdir())


def test_yolo_lines() -> None:
    assert (
        to_yolo(IMAGE, FOUND)
        == "1 0.200000 0.300000 0.200000 0.400000 0.90000\n0 0.500000 0.500000 1.000000 1.000000 0.50000\n"
    )
    assert to_yolo(IMAGE, Detections.empty()) == ""


@pytest.mark.parametrize(
    ("text", "names", "ids"),
    [
        ("ring", ["dot", "ring"], [1]),
        ("1, dot,1", ["dot", "ring"], [1, 0]),
        ("a, b", ["a", "b", "a, b"], [2]),
        ("0", ["1", "0"], [1]),
        ("rung", ["dot", "ring"], "no class 'rung'; do you mean ring"),
        ("2", ["dot", "ring"], "no class '2'; it has dot, ring"),
        ("-1", ["dot", "ring"], "no class '-1'"),
        ("", ["dot", "ring"], "no class ''"),
    ],
)
def test_classes(text: str, names: list[str], ids: Any) -> None:
    if isinstance(ids, list):
        assert parse_classes(text, names) == ids
    else:
        with pytest.raises(InputError, match=ids):
            parse_classes(text, names)
