"""A split of data without validation images: by content and seed alone, with every class on both sides."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.datasets.dataset import Dataset, LabeledImage, MadeSplit
from runtime.datasets.open import open_dataset, undivided
from runtime.datasets.split import divide, names_of
from runtime.datasets.summary import class_counts, require_objects, summarize
from runtime.errors import InputError
from tests.support.ground_truth import truth_of
from tests.support.layouts import make_single


def made_up(root: Path, classes: list[list[int]], names: list[str] | None = None) -> Dataset:
    """Images with objects of these classes, of contents that differ."""
    images, records = [], []
    for index, found in enumerate(classes):
        path = root / (names[index] if names else f"{index}.png")
        path.write_bytes(b"%d" % index * (1 + index))
        boxes = np.tile(np.array([[0, 0, 4, 4]], np.float32), (len(found), 1))
        ids = np.array(found, np.int64)
        images.append(LabeledImage(index + 1, path, 8, 8, boxes, ids, np.zeros(len(found), np.bool_)))
        records += [{"image_id": index + 1, "category_id": 1 + class_id, "bbox": [0, 0, 4, 4]} for class_id in found]
    return Dataset(root, "all", ("a", "b", "c"), tuple(images), truth_of(records))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_every_class_is_on_both_sides_in_its_share(seed: int, share: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    classes = [[0] * int(rng.random() < 0.8) + [1] * int(rng.random() < 0.2) for _ in range(100)]
    classes[3], classes[50] = [2], [0, 2]  # a rare class
    whole = made_up(tmp_path, classes)
    parts = divide(whole, MadeSplit(share, seed))
    assert sorted(names_of(parts["train"]) + names_of(parts["val"])) == names_of(whole)
    for part in parts.values():
        assert all(class_counts(part).values())
        assert {item["image_id"] for item in part.annotations} <= {image.image_id for image in part.images}
    for name, total in class_counts(whole).items():
        assert abs(class_counts(parts["val"])[name] - share * total) <= max(2, 0.1 * total), name
    assert abs(len(parts["val"]) - 100 * share) < 12


def test_the_order_of_files_does_not_matter_and_the_seed_does(tmp_path: Path) -> None:
    whole = made_up(tmp_path, [[index % 3] for index in range(40)])
    again = made_up(tmp_path, [[index % 3] for index in range(40)])
    turned = again.only(again.images[::-1])
    first, second = (divide(data, MadeSplit())["val"] for data in (whole, turned))
    assert names_of(first) == names_of(second) and first.made_split == second.made_split
    assert names_of(divide(whole, MadeSplit(seed=1))["val"]) != names_of(first)


def test_copies_and_augmentations_stay_together(tmp_path: Path) -> None:
    names = [f"{index // 4}_jpg.rf.{index:032x}.jpg" for index in range(40)] + [f"x{index}.png" for index in range(20)]
    whole = made_up(tmp_path, [[index % 2] for index in range(60)], names)
    for index in range(40, 60, 2):
        shutil.copy(whole.images[index].path, whole.images[index + 1].path)
    side = {name: part for part, data in divide(whole, MadeSplit(0.3)).items() for name in names_of(data)}
    for index in range(0, 40, 4):
        assert len({side[name] for name in names[index : index + 4]}) == 1
    for index in range(40, 60, 2):
        assert side[names[index]] == side[names[index + 1]]
    assert set(side.values()) == {"train", "val"}


@pytest.mark.parametrize("classes", [[[0]], [[]]])
def test_one_image_cannot_be_divided(classes: list[list[int]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 images cannot be divided"):
        divide(made_up(tmp_path, classes), MadeSplit())


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_two_images_give_one_each(share: float, tmp_path: Path) -> None:
    for classes in ([[0], [0]], [[], []], [[0], [1]]):
        assert [len(part) for part in divide(made_up(tmp_path, classes), MadeSplit(share)).values()] == [1, 1]


def test_the_split_must_be_that_of_training(tmp_path: Path) -> None:
    root = make_single(tmp_path)
    made = open_dataset(root, "val").made_split
    assert made is not None and open_dataset(root, "train", made).made_split == made
    (root / "images" / "3.png").rename(root / "images" / "30.png")
    text = (root / "result.json").read_text()
    (root / "result.json").write_text(text.replace('"3.png"', '"30.png"'))
    with pytest.raises(InputError, match="not the data that the model was trained on"):
        open_dataset(root, "val", made)
    assert len(open_dataset(root, "all", made)) == 20


def test_a_share_for_data_with_validation_images_is_said_to_be_unused(
    make_coco: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = make_coco([(1, 40, 30, 0)])
    for made, said in ((MadeSplit(0.3), True), (None, False), (MadeSplit(0.3, 0, "0" * 64), False)):
        caplog.clear()
        assert len(open_dataset(root, "val", made)) == 1
        assert ("has validation images of its own" in caplog.text) == said


@pytest.mark.parametrize(
    ("names", "base"),
    [
        (["all"], "all"),
        (["default"], "default"),
        (["train"], "train"),
        (["train", "train_extra"], "train"),
        (["trainval"], "trainval"),
        (["val"], None),
        (["val2017"], None),
        (["test"], None),
        (["train", "val"], None),
        (["train", "test"], None),
        (["train", "minival"], None),
    ],
)
def test_which_data_has_no_validation_images(names: list[str], base: str | None) -> None:
    assert undivided(names) == base


def test_a_summary_tells_what_is_missing(tmp_path: Path) -> None:
    assert summarize(made_up(tmp_path, [[0, 0, 1], []])) == [
        "all: 2 images (1 without objects), 3 objects: a 2, b 1; 3 small, 0 medium, 0 large",
        "all: no object of 1 of 3 classes: c",
    ]
    nothing = made_up(tmp_path, [[], []])
    assert summarize(nothing) == ["all: 2 images (2 without objects), 0 objects"]
    with pytest.raises(InputError, match="split 'all' has no object to train on in its 2 images"):
        require_objects(nothing, "train on")
