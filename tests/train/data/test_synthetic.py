"""The synthetic set reads back with everything it promises, and equal seeds give equal files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset
from runtime.errors import InputError
from runtime.ops import boxes as box_ops
from train.data import synthetic
from train.data.synthetic import CATEGORIES, IMAGE_SIZES, make_synthetic, run_lengths


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("shapes"), train=60, val=12, seed=1)


@pytest.fixture(scope="module")
def dataset(root: Path) -> Dataset:
    return open_dataset(root, "train")


def test_both_splits_read_back(root: Path, dataset: Dataset) -> None:
    assert (len(dataset), len(open_dataset(root, "val"))) == (60, 12)
    assert dataset.class_names == ("circle", "square", "star", "triangle")
    assert dataset.source_category_ids == tuple(CATEGORIES)
    assert max(CATEGORIES) > len(CATEGORIES)
    for image in dataset.images[:12]:
        assert image.read().shape == (image.height, image.width, 3)
    first, second = (open_dataset(root, split).images[0].read() for split in ("train", "val"))
    assert not np.array_equal(first, second)


def test_it_has_what_it_promises(dataset: Dataset) -> None:
    objects = [record for record in dataset.annotations if not record["iscrowd"]]
    areas = np.array([record["area"] for record in objects])
    assert {record["category_id"] for record in objects} == set(dataset.category_ids)
    for least, most in ((0, 32**2), (32**2, 96**2), (96**2, 1e9)):
        assert ((areas >= least) & (areas < most)).sum() >= 5
    assert {(image.width, image.height) for image in dataset.images} == set(IMAGE_SIZES)
    assert sum(not len(image.boxes) for image in dataset.images) == 6
    assert sum(record["iscrowd"] for record in dataset.annotations) >= 5
    overlapping = 0
    for image in dataset.images:
        inside = image.boxes[~image.crowd]
        overlapping += int((np.triu(box_ops.iou(inside, inside), 1) > 0.05).any())
    assert overlapping >= 10


def test_boxes_are_tight_around_lone_shapes(dataset: Dataset) -> None:
    """The pixels with the color of a box's center span the box, if no other object is near."""
    checked = 0
    for entry in dataset.images:
        around = entry.boxes + np.array([-8, -8, 8, 8], np.float32)
        alone = (box_ops.iou(around, entry.boxes) > 0).sum(axis=1) == 1
        image = entry.read().astype(np.float32)
        for x1, y1, x2, y2 in entry.boxes[alone & ~entry.crowd].tolist():
            left, top = max(int(x1) - 4, 0), max(int(y1) - 4, 0)
            window = image[top : int(y2) + 5, left : int(x2) + 5]
            center = window[
                window.shape[0] // 2 - 2 : window.shape[0] // 2 + 3, window.shape[1] // 2 - 2 : window.shape[1] // 2 + 3
            ]
            alike = np.linalg.norm(window - center.mean(axis=(0, 1)), axis=2) < 50
            rows, columns = np.flatnonzero(alike.any(axis=1)), np.flatnonzero(alike.any(axis=0))
            found = [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]
            np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=4)  # the tips of stars are thin
            checked += 1
    assert checked >= 20


def test_crowds_have_run_lengths_that_decode_to_their_box(root: Path) -> None:
    content = json.loads((root / "annotations" / "instances_train.json").read_text())
    crowds = [record for record in content["annotations"] if record["iscrowd"]]
    for record in crowds:
        height, width = record["segmentation"]["size"]
        counts = record["segmentation"]["counts"]
        values = np.arange(len(counts)) % 2
        mask = np.repeat(values, counts).reshape(width, height).T
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y, w, h = record["bbox"]
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x, y, x + w, y + h)
        assert mask.sum() == record["area"]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [([[0, 0], [0, 0]], [4]), ([[1, 1], [1, 1]], [0, 4]), ([[0, 1], [1, 1]], [1, 3]), ([[1, 0], [0, 1]], [0, 1, 2, 1])],
)
def test_run_lengths_go_column_by_column(mask: list[list[int]], expected: list[int]) -> None:
    assert run_lengths(np.array(mask, bool)) == expected


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> dict[str, bytes]:
        folder = make_synthetic(tmp_path / name, train=6, val=2, seed=seed)
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    first, again, other = contents("a", 3), contents("b", 3), contents("c", 4)
    assert len(first) == 10
    assert first == again
    assert first["train/000001.jpg"] != other["train/000001.jpg"]


def test_an_interrupted_run_leaves_no_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_synthetic(tmp_path, train=3, val=1)
    written: list[Path] = []

    def fail_at_the_third(path: Path, image: object) -> None:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "write_image", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path, train=3, val=1)
    assert not list(tmp_path.glob("annotations/*.json"))


def test_another_set_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "annotations" / "instances_val.json"
    target.parent.mkdir()
    target.write_text("{}")
    with pytest.raises(InputError, match="choose another --output"):
        make_synthetic(tmp_path, train=1, val=1)
    assert target.read_text() == "{}"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthetic.main(["--output", str(tmp_path / "set"), "--train", "2", "--val", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "set")
    with pytest.raises(InputError, match="at least 1 of each"):
        synthetic.main(["--output", str(tmp_path / "other"), "--train", "0"])
