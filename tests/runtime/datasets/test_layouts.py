"""Exports of labeling tools, as they are: Roboflow, Ultralytics, CVAT, Label Studio."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.datasets.open import open_dataset
from runtime.errors import InputError
from tests.support.layouts import BOX, CLASSES, coco, make_single, make_yolo, write, write_image, yolo_line

NAMES = "names: [dot, ring]\n"
ROOT = [{"id": 0, "name": "cells", "supercategory": "none"}]
LEAVES = [{"id": i, "name": name, "supercategory": "cells"} for i, name in enumerate(CLASSES, 1)]


def check(root: Path, split: str = "val", images: int = 4) -> None:
    """Every image has one object, of class i % 2, at `BOX`."""
    dataset = open_dataset(root, split)
    assert (dataset.class_names, len(dataset), len(dataset.truth)) == (CLASSES, images, images)
    for image in dataset.images:
        assert image.read().shape == (image.height, image.width, 3)
        assert image.boxes[0].tolist() == pytest.approx([BOX[0], BOX[1], BOX[0] + BOX[2], BOX[1] + BOX[3]], abs=1e-4)
        assert image.class_ids.tolist() == [int(image.path.stem) % 2]


# --- Roboflow's COCO export


def roboflow(root: Path, categories: Any = None) -> Path:
    for number, split in enumerate(("train", "valid", "test")):
        names = [f"{i}.png" for i in range(4)]
        for i, name in enumerate(names):
            write_image(root / split / name, 100 * number + i)
        write(root / split / "_annotations.coco.json", coco(names, categories or ROOT + LEAVES))
    return root


def test_roboflow_as_exported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = roboflow(tmp_path)
    with caplog.at_level(logging.INFO):
        for split in ("train", "val", "valid", "test"):
            check(root, split)
    assert "root category 'cells' (id 0) owns no object and is left out" in caplog.text
    assert open_dataset(root, "val").split == "valid"


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([{**ROOT[0], "name": "dot"}, *LEAVES], CLASSES),  # named like a class
        ([{**ROOT[0], "name": "none", "supercategory": "none"}, *LEAVES], CLASSES),
        ([{"id": 0, "name": "rare"}, *LEAVES], ("rare", *CLASSES)),  # no root, only a class without objects
        ([{**item, "supercategory": "none"} for item in LEAVES], CLASSES),
    ],
)
def test_a_root_category_is_told_by_its_supercategory(categories: Any, expected: tuple[str, ...], tmp_path: Path) -> None:
    assert open_dataset(roboflow(tmp_path, categories), "val").class_names == expected


def test_a_root_category_that_owns_objects_in_another_split_stays(tmp_path: Path) -> None:
    root = roboflow(tmp_path)
    write(root / "train" / "_annotations.coco.json", coco(["0.png"], ROOT + LEAVES, category_id=0))
    assert open_dataset(root, "val").class_names == open_dataset(root, "train").class_names == ("cells", *CLASSES)


def test_a_doubled_name_is_named(tmp_path: Path) -> None:
    root = roboflow(tmp_path, [*LEAVES, {"id": 7, "name": "dot"}])
    with pytest.raises(InputError, match="1 class names stand for two classes each \\('dot'\\)"):
        open_dataset(root, "val")


# --- YOLO


@pytest.mark.parametrize(
    "text",
    [
        f"{NAMES}train: images/train\nval: images/val\n",
        "names: {0: dot, 1: ring}\nnc: 2\ntrain: images/train/\nval: ./images/val\ntest:\n",
        "names:\n  1: ring\n  0: dot\ntrain: [images/train]\nval: [images/val]\n",
        f"path: /content/somewhere\n{NAMES}train: images/train\nval: images/val\n",
        f"path: ../datasets/mine\n{NAMES}train: images/train\nval: images/val\n",
        f"path: .\n{NAMES}train: ../images/train\nval: ../images/val\n",
        f"path: images\n{NAMES}train: train\nval: val\n",
        f"{NAMES}train: /home/me/data/images/train\nval: C:\\data\\images\\val\n",
        f"\ufeff{NAMES}train: images/train\nval: images/val\nroboflow: {{license: x}}\n",
        f"{NAMES}train: lists/train.txt\nval: lists/val.txt\n",
    ],
)
def test_yolo_yaml(text: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    root = make_yolo(tmp_path, text)
    for split in ("train", "val"):
        write(root / "lists" / f"{split}.txt", "".join(f"./images/{split}/{i}.png\r\n" for i in range(4)))
        check(root, split)


def test_yolo_as_roboflow_exports_it(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    root = make_yolo(tmp_path, f"train: ../train/images\nval: ../valid/images\n{NAMES}", ("train", "valid"), images="{}/images")
    check(root, "train")
    check(root, "val")


def test_yolo_as_label_studio_exports_it(tmp_path: Path) -> None:
    root = make_yolo(tmp_path, "", ("all",), 20)
    for kind in ("images", "labels"):
        for path in (root / kind / "all").iterdir():
            path.rename(root / kind / path.name)
        (root / kind / "all").rmdir()
    (root / "data.yaml").unlink()
    write(root / "classes.txt", "dot\nring\n")
    check(root, "train", 16)
    check(root, "val", 4)
    check(root, "all", 20)


@pytest.mark.parametrize(
    ("line", "boxes"),
    [
        ("", []),
        ("1 0.5 0.5 0.5 0.5", [[10, 7.5, 30, 22.5]]),
        ("1.0 0.5 0.5 0.5 0.5\n\n", [[10, 7.5, 30, 22.5]]),
        ("0 0.1 0.2 0.5 0.2 0.3 0.8", [[4, 6, 20, 24]]),  # a polygon
        ("0 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8", [[4, 6, 20, 24]]),
        ("0 0 0 0.5 0.5", [[0, 0, 10, 7.5]]),  # reaches out: clipped
        ("0 0.5 0.5 1.001 1.001", [[0, 0, 40, 30]]),  # rounding
        ("0 0.5 0.5 0 0.5", []),  # no area
    ],
)
def test_yolo_labels(line: str, boxes: list[list[float]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("yaml")
    root = make_yolo(tmp_path, f"{NAMES}train: images/train\nval: images/val\n")
    write(root / "labels" / "val" / "2.txt", line)
    (root / "labels" / "val" / "3.txt").unlink()
    with caplog.at_level(logging.INFO):
        dataset = open_dataset(root, "val")
    assert dataset.images[2].boxes.tolist() == [pytest.approx(box, abs=1e-4) for box in boxes]
    assert dataset.images[3].boxes.shape == (0, 4) and "1 images have no label file" in caplog.text
    assert ("polygons, reduced to their boxes" in caplog.text) == (len(line.split()) > 5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 20 15 10 10", "line 1: .* leaves 0-1; labels must be shares of the image: divide"),
        ("2 0.5 0.5 0.5 0.5", "class 2 has no name; data.yaml names 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "class -1 has no name"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5 has no name"),
        ("0 0.5 0.5 0.5", "3 numbers behind the class"),
        ("0 0.5 0.5 0.5 0.5 0.9", "5 numbers behind the class"),
        ("dot 0.5 0.5 0.5 0.5", "is not a label"),
        ("0 nan 0.5 0.5 0.5", "leaves 0-1"),
        ("0", "0 numbers behind the class"),
    ],
)
def test_bad_yolo_labels_are_named(line: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    root = make_yolo(tmp_path, f"{NAMES}train: images/train\nval: images/val\n")
    write(root / "labels" / "val" / "2.txt", line)
    with pytest.raises(InputError, match=rf"labels/val/2\.txt: .*{message}"):
        open_dataset(root, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [dot\ntrain: x", "not readable as YAML"),
        ("names: !!python/object/apply:os.system ['true']\ntrain: images/train", "not readable as YAML"),
        ("names: [dot, ring]\nnc: 3\ntrain: images/train\n", "nc is 3, but names has 2"),
        ("names: {0: dot, 2: ring}\ntrain: images/train\n", r"names has the ids \[0, 2\]"),
        ("names: {a: dot}\ntrain: images/train\n", "no class id"),
        ("names: dot\ntrain: images/train\n", "expected a list or a map"),
        ("names: [dot, dot]\ntrain: images/train\nval: images/val\n", "'dot'"),
        (f"{NAMES}train: 5\n", "train is 5, expected a folder"),
        (f"{NAMES}train: images/train\nval: images/gone\n", "'images/gone' is not in"),
        (f"{NAMES}train: images/train\nval: /\n", "'/' is not in"),
        (f"{NAMES}train: images/train\nval: evil.txt\n", "absolute path, or leads out"),
    ],
)
def test_bad_yaml_is_named(text: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    root = make_yolo(tmp_path, text)
    write(root / "evil.txt", "../other/0.png\n")
    with pytest.raises(InputError, match=message):
        open_dataset(root, "val")


def test_a_rotated_image_has_its_labels_in_the_frame_that_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    root = make_yolo(tmp_path, f"{NAMES}train: images/train\nval: images/val\n")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: a quarter turn
    import cv2
    import numpy as np

    encoded = cv2.imencode(".jpg", np.zeros((30, 40, 3), np.uint8))[1].tobytes()
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (root / "images" / "val" / "0.png").unlink()
    (root / "images" / "val" / "0.jpg").write_bytes(encoded[:2] + segment + encoded[2:])
    image = open_dataset(root, "val").images[0]
    assert (image.width, image.height) == (30, 40) and image.read().shape == (40, 30, 3)


# --- one COCO file


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"source": "annotations/instances_default.json"},  # CVAT
        {"source": "annotations/instances_default.json", "images": "images/default"},
        {"prefix": "images\\"},  # Label Studio on Windows
        {"prefix": "images/"},
        {"source": "my set-1.json", "images": "."},  # COCO-Annotator
        {"source": "photos/labels.json", "images": "photos"},
        {"images": "photos of 2024"},
        {"source": "export/result.json", "images": "export/images"},
        {"source": "_annotations.coco.json", "images": "."},
    ],
)
def test_one_coco_file_with_one_folder(options: dict[str, str], tmp_path: Path) -> None:
    root = make_single(tmp_path, **options)
    check(root, "val", 4)
    check(root, "train", 16)
    check(root, "all", 20)


def test_a_yaml_file_that_is_no_layout_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    root = make_single(tmp_path)
    write(root / "broken.yaml", "a: [")
    write(root / "compose.yml", "services: {names: [x]}")
    check(root, "all", 20)


def test_coco_files_of_other_names_are_splits(tmp_path: Path) -> None:
    root = make_single(tmp_path, 4, "annotations/train.json", "images")
    shutil.copy(root / "annotations" / "train.json", root / "annotations" / "val.json")
    write(root / "annotations" / "notes.json", {"other": []})
    check(root, "train")
    check(root, "val")


# --- none of them


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: write(root / "a.txt", ""), "found 1 .txt; expected COCO"),
        (lambda root: [write_image(root / "photos" / f"{i}.png", i) for i in range(3)], "found photos/; expected"),
        (lambda root: write(root / "labels.json", {"images": []}), "found 1 .json; expected"),
        (lambda root: make_single(root / "inner" / "deeper"), "inner is a dataset: use --data .*inner; expected"),
    ],
)
def test_the_error_for_an_unknown_layout_says_what_was_seen(
    build: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    build(tmp_path)
    with pytest.raises(InputError, match=f"no dataset layout that is known; .*{message}") as error:
        open_dataset(tmp_path, "val")
    assert "YOLO" in str(error.value) and "\n" not in str(error.value)


def test_an_image_without_label_file_next_to_the_labels(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    write(tmp_path / "data.yaml", f"{NAMES}train: data\nval: data\n")
    write_image(tmp_path / "data" / "0.png", 0)
    write(tmp_path / "data" / "0.txt", yolo_line(0))
    check(tmp_path, "val", 1)


@pytest.mark.parametrize("identity", ["9" * 5000, "00012", "1e3", 2**64, -(2**63), 7.0, "é\n"])
def test_ids_of_any_kind_stay_at_the_border(identity: object, tmp_path: Path) -> None:
    content = coco(["0.png", "1.png"])
    for record in (content["images"][1], content["annotations"][1]):
        record["id" if "file_name" in record else "image_id"] = identity
    for record in (content["categories"][1], content["annotations"][1]):
        record["id" if "name" in record else "category_id"] = identity
    for i in range(2):
        write_image(tmp_path / "images" / f"{i}.png", i)
    write(tmp_path / "result.json", content)
    dataset = open_dataset(tmp_path, "all")
    assert sorted(image.image_id for image in dataset.images) == [1, 2] and dataset.category_ids == (1, 2)
    found = [{"image_id": image.image_id, "category_id": 1} for image in dataset.images]
    assert [item["image_id"] for item in dataset.to_source(found)] == [0, identity]
    assert {item["category_id"] for item in dataset.to_source([{**found[0], "category_id": k} for k in (1, 2)])} == {
        1,
        identity,
    }


def test_a_name_that_would_break_the_line_is_escaped(tmp_path: Path) -> None:
    root = make_single(tmp_path)
    write(root / "result.json", coco(["a\nb\x1b[2J.png"]))
    with pytest.raises(InputError, match=r"image a\\nb\\x1b\[2J\.png is in none of"):
        open_dataset(root, "val")
