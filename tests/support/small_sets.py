"""A small set of images in the COCO layout whose annotations several tests write."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.files import write_json
from tests.support.small_models import CLASSES

IMAGES = 24


@dataclass(frozen=True)
class Exported:
    """Weights, the file exported from them, and a set that both find perfectly."""

    weights: Path
    model: Path
    data: Path


def write_labels(data: Path, objects: list[dict[str, Any]], images: int = IMAGES) -> None:
    """COCO annotations of the set's images: `bbox`, `category_id` and `image_id` of each object."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 72} for i in range(images)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [
            {**item, "id": number, "area": item["bbox"][2] * item["bbox"][3], "iscrowd": 0}
            for number, item in enumerate(objects)
        ],
    }
    write_json(data / "annotations" / "instances_val2017.json", content)


def known_labels(exported: Exported, images: Iterable[int]) -> list[dict[str, Any]]:
    """The objects of some of the set's images."""
    content = json.loads((exported.data / "annotations" / "instances_val2017.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    return [{key: item[key] for key in keys} for item in content["annotations"] if item["image_id"] in set(images)]
