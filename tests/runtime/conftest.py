"""Fixtures of the runtime tests: a COCO folder, and images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.media.image import write_image
from tests.support.detect_command import RING_BOX, white


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """Write a COCO folder: `images` are (id, width, height, gray level), `boxes` are (image id, category id, bbox, extras)."""

    def build(
        images: Any = (), boxes: Any = (), categories: Any = ((3, "dot"), (9, "ring")), split: str = "val2017", folder: str = ""
    ) -> Path:
        root = tmp_path / "coco"
        folder_of_split = root / (folder or split)
        folder_of_split.mkdir(parents=True, exist_ok=True)
        (root / "annotations").mkdir(exist_ok=True)
        for image_id, width, height, gray in images:
            cv2.imwrite(str(folder_of_split / f"{image_id}.png"), np.full((height, width, 3), gray, np.uint8))
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, w, h, _ in images],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    **(extras[0] if extras else {}),
                }
                for number, (image_id, category, box, *extras) in enumerate(boxes)
            ],
            "categories": [{"id": k, "name": name} for k, name in categories],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return root

    return build


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two good images, one of them black, and three bad files."""
    folder = tmp_path / "in"
    write_image(folder / "a.png", white())
    write_image(folder / "b.jpg", np.zeros((50, 40, 3), np.uint8))
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-40])
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write_image(tmp_path / "in" / "a.png", white())
    return tmp_path / "in" / "a.png"


@pytest.fixture
def two_rings(make_coco: Callable[..., Path]) -> Path:
    """Two white images with the ring (found), and a black one with a dot (missed)."""
    images = [(41, 64, 64, 255), (7, 128, 128, 255), (900_000_000_000, 64, 64, 0)]
    boxes = [(41, 9, RING_BOX), (7, 9, tuple(2 * value for value in RING_BOX)), (900_000_000_000, 3, (1, 1, 20, 20))]
    return make_coco(images, boxes)
