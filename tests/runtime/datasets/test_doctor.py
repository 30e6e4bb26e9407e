"""Faults of a split are found, counted and named; a good one is left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.datasets.doctor import examine, examine_leakage, examine_unlisted
from runtime.datasets.open import open_dataset
from tests.support.layouts import BOX, coco, write, write_image

Change = Callable[[Path, dict[str, Any]], object]


def make(root: Path, change: Change = lambda root, content: None) -> Path:
    for number, split in enumerate(("train", "val")):
        for i in range(4):
            write_image(root / split / f"{i}.png", 100 * number + i)
        content = coco([f"{i}.png" for i in range(4)])
        if split == "val":
            change(root, content)
        write(root / "annotations" / f"instances_{split}.json", content)
    return root


def annotate(content: dict[str, Any], box: Any, category: int = 1) -> None:
    content["annotations"].append({"id": 99, "image_id": 0, "category_id": category, "bbox": box})


def found(root: Path, is_fault: bool) -> list[str]:
    train, val = (open_dataset(root, split) for split in ("train", "val"))
    findings = [item for data in (train, val) for item in examine(data, 416, 6 if data is val else 0)]
    findings += [*examine_leakage(train, val), *examine_unlisted([train, val])]
    assert all("\n" not in item.text for item in findings)
    return [item.text for item in findings if item.is_fault == is_fault]


def test_a_good_set_has_nothing_to_correct(tmp_path: Path) -> None:
    assert found(make(tmp_path), True) == found(tmp_path, False) == []


def darken(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((20, 20, 3), np.uint8))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda root, c: annotate(c, [5, 5, 0, 9]), "1 of 5 boxes have no area inside their image"),
        (lambda root, c: annotate(c, [30, 5, 30, 9]), "1 of 5 boxes reach out of their image"),
        (lambda root, c: annotate(c, [5, 5, 0.5, 9]), "1 boxes have a side under a pixel (0.png)"),
        (lambda root, c: annotate(c, BOX), "1 objects are labeled twice"),
        (lambda root, c: annotate(c, [BOX[0], BOX[1], BOX[2] + 0.5, BOX[3]]), "1 objects are labeled twice"),
        (lambda root, c: annotate(c, BOX, 2), "1 objects are labeled as two classes"),
        (lambda root, c: c["categories"].append({"id": 7, "name": "rare"}), "no object of 1 of 3 classes: rare"),
        (lambda root, c: (root / "val" / "1.png").write_bytes(b"no image"), "1 images cannot be read, such as "),
        (lambda root, c: darken(root / "val" / "1.png"), "1 images are of another size than annotated, such as "),
        (lambda root, c: shutil.copy(root / "val" / "1.png", root / "val" / "2.png"), "1 image is copies of others"),
        (lambda root, c: shutil.copy(root / "train" / "1.png", root / "val" / "2.png"), "1 image is of val in train too"),
    ],
)
def test_what_is_to_be_corrected_is_counted_and_named(change: Change, text: str, tmp_path: Path) -> None:
    faults = found(make(tmp_path, change), True)
    assert len(faults) == 1 and text in faults[0], faults


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda root, c: annotate(c, [30, 20, 0.3, 0.3]) or annotate(c, [30, 25, 1.5, 0.5]), None),
        (lambda root, c: write_image(root / "val" / "extra.png", 9), "1 images lie beside those of the splits"),
    ],
)
def test_what_is_worth_knowing_is_no_fault(change: Change, text: str | None, tmp_path: Path) -> None:
    notes = found(make(tmp_path, change), False)
    assert len(notes) == 1 and (text or "2 of 6 boxes have a side under 6 pixels at size 416") in notes[0], notes
    assert json.dumps(notes)
