"""The images that calibration and search use: apart from each other, by seed, and never those that are verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calibration.images import MIN_SEARCH, choose_apart, find_shared, group_copies, range_image_count
from runtime.datasets.dataset import Dataset, LabeledImage
from runtime.errors import InputError
from runtime.files import sha256
from runtime.media.image import write_image
from tests.support.ground_truth import truth_of

COUNT = 90
Made = Callable[..., Dataset]


OBJECT = (np.array([[0, 0, 4, 4]], np.float32), np.array([0]), np.array([False]))


@pytest.fixture
def make(tmp_path: Path) -> Made:
    """A split of small images, of which some have the same contents and some cannot be read."""

    def build(count: int = COUNT, copies: int = 0, broken: int = 0) -> Dataset:
        rng = np.random.default_rng(0)
        entries = []
        for index in range(count):
            path = tmp_path / f"{index}.png"
            write_image(path, rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            if index < copies:
                path.write_bytes((tmp_path / "0.png").read_bytes())
            if count - index <= broken:
                path.write_bytes(b"no image")
            entries.append(LabeledImage(index, path, 8, 8, *OBJECT))
        annotations = [{"image_id": index, "category_id": 1, "bbox": [0, 0, 4, 4]} for index in range(count)]
        return Dataset(tmp_path, "train", ("cat",), tuple(entries), truth_of(annotations))

    return build


@pytest.mark.parametrize(("asked", "calibrated", "searched"), [(None, 30, 60), (10, 10, 80), (40, 40, 50)])
def test_no_image_is_in_both_parts(asked: int | None, calibrated: int, searched: int, make: Made) -> None:
    images, search = choose_apart(make(), asked, 0)
    assert (len(images), len(search)) == (calibrated, searched)
    assert not {image.entry.image_id for image in images} & {entry.image_id for entry in search.images}
    assert {item["image_id"] for item in search.annotations} == {entry.image_id for entry in search.images}
    again, same = choose_apart(make(), asked, 0)
    other, _ = choose_apart(make(), asked, 1)
    names = [image.entry.path.name for image in images]
    assert names == [image.entry.path.name for image in again] != [image.entry.path.name for image in other]
    assert [entry.image_id for entry in search.images] == [entry.image_id for entry in same.images]


def test_copies_of_a_calibration_image_are_not_searched_on(make: Made) -> None:
    for seed in range(4):
        images, search = choose_apart(make(copies=15), 20, seed)
        assert not {image.sha256 for image in images} & {sha256(entry.path) for entry in search.images}


def test_images_that_cannot_be_read_are_in_neither(make: Made) -> None:
    images, search = choose_apart(make(broken=5), None, 0)
    used = {image.entry.image_id for image in images} | {entry.image_id for entry in search.images}
    assert used == set(range(COUNT - 5))


def test_too_few_images_to_search_on_are_refused(make: Made) -> None:
    with pytest.raises(
        InputError, match=f"leaves 49 images to search on beside 24 .*, {MIN_SEARCH} are needed.*--search-split"
    ):
        choose_apart(make(count=73), None, 0)


def test_shared_files_are_found_by_their_contents(make: Made) -> None:
    dataset = make(copies=3)
    path = dataset.images[0].path
    for sizes in (None, {path.stat().st_size}):
        assert [entry.image_id for entry in find_shared({sha256(path)}, sizes, dataset)] == [0, 1, 2]
    assert find_shared({sha256(path)}, {1}, dataset) == find_shared(set(), None, dataset) == []


def test_copies_are_numbered_alike(make: Made) -> None:
    dataset = make(count=6, copies=3)
    assert group_copies(dataset, [5, 0, 3, 2, 1, 4]).tolist() == [0, 1, 2, 1, 1, 3]


@pytest.mark.parametrize(
    ("available", "count"),
    [
        (0, 8),
        (51, 8),
        (179, 8),
        (180, 9),
        (205, 10),
        (320, 16),
        (912, 16),
    ],
)
def test_small_datasets_search_ranges_on_fewer_images(available: int, count: int) -> None:
    assert range_image_count(available) == count
