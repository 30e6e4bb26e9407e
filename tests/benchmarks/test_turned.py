"""Views of images: their boxes stay on their objects, and a perfect model stays perfect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import turned
from export import onnx as export_onnx
from runtime.datasets.open import open_dataset


@pytest.mark.parametrize("view", range(turned.VIEWS))
def test_boxes_move_with_the_image(view: int) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    boxes = np.array([[3, 5, 10, 20], [30, 2, 25, 6]])
    for number, (left, top, width, height) in enumerate(boxes, 1):
        image[top : top + height, left : left + width] = number
    seen = turned.turned(image, view)
    found = turned.turned_boxes(boxes.astype(float), 60, 40, view).astype(int)
    for number, (left, top, width, height) in enumerate(found, 1):
        rows, columns = np.nonzero(seen[..., 0] == number)
        assert (columns.min(), rows.min()) == (left, top)
        assert (columns.max() + 1 - left, rows.max() + 1 - top) == (width, height)


def test_all_views_differ() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert len({turned.turned(image, view).tobytes() for view in range(turned.VIEWS)}) == turned.VIEWS


def test_a_file_against_itself_and_another(
    make_checkpoint: Callable[..., Path], coco_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = open_dataset(coco_set, "val")
    views = turned.views_of(split, tmp_path)
    assert len(views.images) == 8 * len(split.images) and len(views.truth) == 8 * len(split.truth)
    files = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for file, changes in zip(files, ({}, {"fusion": "none"})):
        assert export_onnx.main(["--weights", str(make_checkpoint(**changes)), "--output", str(file)]) == 0
    compared = [item for file in files for item in ("--compare", str(file))]
    capsys.readouterr()
    assert turned.main(["--engine", str(files[0]), *compared, "--data", str(coco_set), "--json"]) == 0
    same, other = json.loads(capsys.readouterr().out).values()
    assert same["delta_ap"] == same["lower"] == same["upper"] == 0
    assert other["ap"] - same["ap"] == pytest.approx(other["delta_ap"])
