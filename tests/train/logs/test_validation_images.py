"""Validation images: ground truth on the left, detections on the right, and words where there are none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.datasets.open import open_dataset
from runtime.detections import Detections
from runtime.ops.image import Image
from runtime.viz.annotate import class_color
from runtime.viz.canvas import MARGIN, PAPER
from tests.support.small_models import CLASSES
from train.logs import validation_images
from train.logs.validation_images import _SIDE, _spread, draw_validation

GRAY = (160, 160, 160)


class Finder:
    """Stands for a detector that finds the same in every image."""

    spec = SimpleNamespace(class_names=CLASSES)

    def __init__(self, found: Detections) -> None:
        self.found, self.seen = found, 0

    def __call__(self, image: Image) -> Detections:
        self.seen += 1
        return self.found


def sides(drawn: Image) -> tuple[Image, Image]:
    """The columns of ground truth and of detections of the pairs on the left."""
    return drawn[:, MARGIN : MARGIN + _SIDE], drawn[:, MARGIN + _SIDE + 4 : MARGIN + 2 * _SIDE + 4]


def has(image: Image, color: tuple[int, int, int]) -> bool:
    return bool((image == color).all(axis=2).any())


def test_ground_truth_is_left_and_detections_are_right(coco_set: Path) -> None:
    finder: Any = Finder(Detections.from_arrays([[5, 5, 60, 60]], [0.4], [2]))
    drawn = draw_validation(finder, 0.361, open_dataset(coco_set, "val"))
    assert drawn is not None and finder.seen == 4
    truth, found = sides(drawn)
    assert has(truth, class_color(1)) and not has(found, class_color(1))
    assert has(found, class_color(2))
    for edge in (drawn[:20], drawn[-20:], drawn[:, :20], drawn[:, -20:]):
        assert (edge == PAPER).all()


@pytest.mark.parametrize(
    ("found", "threshold", "expected"),
    [
        (Detections.empty(), 0.25, {"nothing above 0.25"}),
        (Detections.empty(), 0.011, {"nothing above 0.011"}),
        (Detections.from_arrays([[5, 5, 60, 60]], [0.9], [0]), 0.361, {"1 detected, score >= 0.36"}),
    ],
)
def test_the_words_say_the_threshold(
    found: Detections, threshold: float, expected: set[str], coco_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    original = validation_images.write

    def noted(canvas: Image, text: str, *rest: Any) -> None:
        said.append(text)
        original(canvas, text, *rest)

    monkeypatch.setattr(validation_images, "write", noted)
    finder: Any = Finder(found)
    assert draw_validation(finder, threshold, open_dataset(coco_set, "val")) is not None
    assert {text for text in said if "labeled" not in text} == expected
    assert [text for text in said if "labeled" in text] == [f"{int(n > 0)} labeled: {n}.png" for n in (1, 2, 3, 0)]
    assert len(said) == (8 if len(found) else 12)  # in the heading, and in the image


def test_crowds_are_gray(coco_set: Path) -> None:
    file = coco_set / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
    finder: Any = Finder(Detections.empty())
    drawn = draw_validation(finder, 0.25, open_dataset(coco_set, "val"))
    assert drawn is not None and has(sides(drawn)[0], GRAY)
    assert not any(has(drawn, class_color(number)) for number in range(3))


def test_unreadable_images_give_way_to_others(coco_set: Path) -> None:
    finder: Any = Finder(Detections.empty())
    for number, left in ((1, 3), (2, 2), (3, 1)):
        (coco_set / "val" / f"{number}.png").write_bytes(b"no image")
        finder.seen = 0
        assert draw_validation(finder, 0.25, open_dataset(coco_set, "val")) is not None and finder.seen == left
    (coco_set / "val" / "0.png").write_bytes(b"")
    assert draw_validation(finder, 0.25, open_dataset(coco_set, "val")) is None


@pytest.mark.parametrize(
    ("count", "first"), [(0, []), (1, [0]), (8, [*range(8)]), (9, [0, 1, 2, 3, 4, 5, 6, 8]), (701, [*range(0, 701, 100)])]
)
def test_a_few_images_stand_for_all(count: int, first: list[int]) -> None:
    order = _spread(range(count))
    assert order[: len(first)] == first and sorted(order) == [*range(count)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (33, 50), (900, 1200)])
def test_images_of_any_size_are_drawn(shape: tuple[int, int]) -> None:
    entry = SimpleNamespace(
        boxes=np.array([[0, 0, shape[1], shape[0]]], np.float32),
        class_ids=np.array([0]),
        crowd=np.array([False]),
        path=Path("x" * 200),
        read=lambda: np.zeros((*shape, 3), np.uint8),
    )

    class Split(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.images)

    finder: Any = Finder(Detections.empty())
    split: Any = Split(images=[entry] * 3, class_names=CLASSES)
    drawn = draw_validation(finder, 0.25, split)
    assert drawn is not None and drawn.shape[1] == 2 * MARGIN + 4 * _SIDE + 2 * 4 + 28
