"""The same labeled images in every layout that data sets come in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ("dot", "ring")
SIZE = (40, 30)
BOX = (4.0, 3.0, 20.0, 12.0)  # left, top, width, height


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)


def coco(names: Sequence[str], categories: Any = None, **changes: Any) -> dict[str, Any]:
    """A COCO file of these images; the i-th has an object of class i % 2."""
    first = 1
    return {
        "images": [{"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": first + i % 2, "bbox": list(BOX), "iscrowd": 0, **changes}
            for i in range(len(names))
        ],
        "categories": categories or [{"id": first + i, "name": name} for i, name in enumerate(CLASSES)],
    }


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def yolo_line(class_id: int) -> str:
    x, y, w, h = BOX
    numbers = ((x + w / 2) / SIZE[0], (y + h / 2) / SIZE[1], w / SIZE[0], h / SIZE[1])
    return f"{class_id} {' '.join(map(str, numbers))}\n"


def make_yolo(
    root: Path, text: str, splits: Sequence[str] = ("train", "val"), count: int = 4, images: str = "images/{}"
) -> Path:
    """Writes `data.yaml`, images in `images/<split>/`, labels in `labels/<split>/`."""
    for number, split in enumerate(splits):
        folder = images.format(split)
        for i in range(count):
            write_image(root / folder / f"{i}.png", 100 * number + i)
            write(root / folder.replace("images", "labels") / f"{i}.txt", yolo_line(i % 2))
    write(root / "data.yaml", text)
    return root


def make_single(root: Path, count: int = 20, source: str = "result.json", images: str = "images", prefix: str = "") -> Path:
    """Writes one COCO file and one folder of images."""
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        write_image(root / images / name, i)
    write(root / source, coco([prefix + name for name in names]))
    return root
