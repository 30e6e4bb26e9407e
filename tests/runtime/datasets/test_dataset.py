"""COCO and VOC readers: what they make of odd but legal annotations, and the message for each bad one."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.datasets.open import choose_split, open_dataset
from runtime.errors import InputError

MakeCoco = Callable[..., Path]
IMAGES = [(7, 40, 30, 0), (900_000_000_000, 20, 10, 50)]


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    source = root / "annotations" / "instances_val2017.json"
    content = json.loads(source.read_text())
    change(content)
    source.write_text(json.dumps(content))


# --- COCO


def test_coco_images_without_annotations(make_coco: MakeCoco) -> None:
    dataset = open_dataset(make_coco(IMAGES), "val2017")
    assert len(dataset) == 2 and dataset.annotations == ()
    assert [image.boxes.shape for image in dataset.images] == [(0, 4)] * 2
    assert [image.read().shape for image in dataset.images] == [(30, 40, 3), (10, 20, 3)]


def test_coco_reads_what_is_written(make_coco: MakeCoco) -> None:
    boxes = [
        (900_000_000_000, 9, (1, 2, 3, 4)),
        (7, 3, (0, 0, 40, 30), {"iscrowd": 1, "area": 17.5}),
        (7, 9, (0.5, 1.25, 10, 5)),
    ]
    root = make_coco(IMAGES, boxes, categories=[(9, "ring"), (3, "dot")])  # not in the order of ids
    dataset = open_dataset(root, "val2017")
    assert (dataset.class_names, dataset.source_category_ids, dataset.split) == (("dot", "ring"), (3, 9), "val2017")
    first, second = dataset.images
    assert (first.image_id, first.source_id, first.width, first.height) == (1, 7, 40, 30)
    assert first.boxes.dtype == np.float32 and first.class_ids.dtype == np.int64 and first.crowd.dtype == np.bool_
    assert first.boxes.tolist() == [[0, 0, 40, 30], [0.5, 1.25, 10.5, 6.25]]
    assert first.class_ids.tolist() == [0, 1] and first.crowd.tolist() == [True, False]
    assert (second.image_id, second.source_id) == (2, 900_000_000_000) and second.boxes.tolist() == [[1, 2, 4, 6]]
    # the ground truth keeps areas; ids count from 1, since pycocotools takes an id of 0 for `not matched`
    assert [(a["id"], a["image_id"], a["category_id"], a["iscrowd"], a["area"]) for a in dataset.annotations] == [
        (1, 2, 2, 0, 12),
        (2, 1, 1, 1, 17.5),
        (3, 1, 2, 0, 50),
    ]


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        # no area, or none inside: left out
        ((5, 5, 0, 4), None),
        ((5, 5, 4, 0), None),
        ((50, 5, 4, 4), None),
        ((-9, 5, 9, 4), None),
        # reaching out: clipped
        ((-5, -5, 10, 10), [0, 0, 5, 5]),
        ((35, 25, 10, 10), [35, 25, 40, 30]),
        ((-5e5, -5e5, 1e6, 1e6), [0, 0, 40, 30]),
    ],
)
def test_coco_boxes_out_of_the_image(
    box: tuple[float, ...], clipped: list[float] | None, make_coco: MakeCoco, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_coco(IMAGES, [(7, 9, box), (7, 3, (1, 1, 2, 2))])
    with caplog.at_level(logging.WARNING):
        image = open_dataset(root, "val2017").images[0]
    assert image.boxes.tolist() == ([clipped] if clipped else []) + [[1, 1, 3, 3]]
    assert image.class_ids.tolist() == ([1] if clipped else []) + [0]
    assert ("1 of 2 boxes have no area" in caplog.text) == (clipped is None)


def test_coco_extra_and_missing_keys(make_coco: MakeCoco) -> None:
    root = make_coco(IMAGES, [(7, 9, (1, 2, 3, 4))])

    def change(content: dict[str, Any]) -> None:
        content["licenses"] = []
        for key in ("area", "iscrowd", "id"):
            del content["annotations"][0][key]
        content["annotations"][0]["segmentation"] = [[1, 2]]

    edit(root, change)
    assert open_dataset(root, "val2017").annotations == (
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
    )


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "images", "."])
def test_coco_image_folders(folder: str, make_coco: MakeCoco) -> None:
    root = make_coco(IMAGES, folder=folder)
    assert open_dataset(root, "val2017").images[0].path.parent == root / folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.clear(), "not a COCO annotation file"),
        (lambda c: c.update(images={}), "not a COCO annotation file"),
        (lambda c: c.pop("categories"), "not a COCO annotation file"),
        # categories
        (lambda c: c.update(categories=[], annotations=[]), "categories must exist"),
        (lambda c: c["categories"].append({"id": 3, "name": "other"}), "distinct ids and names"),
        (lambda c: c["categories"].append({"id": 4, "name": "dot"}), "distinct ids and names"),
        (lambda c: c["categories"].append({"id": "3", "name": "x"}), "distinct ids and names"),
        (lambda c: c["categories"].append({"id": True, "name": "x"}), "bad category .*id is True, expected"),
        (lambda c: c["categories"].append({"id": 4, "name": None}), "bad category"),
        (lambda c: c["categories"].append(None), "bad category None"),
        # images
        (lambda c: c["images"].append({**c["images"][0], "file_name": "other.png"}), "two images have the same id, 7"),
        (lambda c: c["images"].append([]), "bad image"),
        (lambda c: c["images"][0].pop("width"), "bad image .*7.png"),
        (lambda c: c["images"][0].update(height=0), "bad image .*7.png"),
        (lambda c: c["images"][0].update(width=1.5), "bad image .*7.png"),
        (lambda c: c["images"][0].update(id=float("inf")), "bad image .*7.png.*: id is inf, expected"),
        (lambda c: c["images"][0].update(file_name=5), "bad image"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "image gone.png is in none of"),
        (lambda c: c["images"][0].update(file_name=""), "is in none of"),
        # annotations
        (lambda c: c["annotations"].append("box"), "bad annotation 'box'"),
        (lambda c: c["annotations"][0].pop("bbox"), "bad annotation"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "bad annotation .*1, 2, 3"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, None]), "not finite"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, 10**400]), "bad annotation"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "not finite or has a negative side"),
        (lambda c: c["annotations"][0].update(bbox=[1, float("inf"), 3, 4]), "not finite or has a negative side"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "not finite or has a negative side"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, -4]), "not finite or has a negative side"),
        (lambda c: c["annotations"][0].update(area=float("nan")), "area is nan, expected a finite number"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 1.1e6, 4]), r"beyond 1,000,000 pixels"),
        (lambda c: c["annotations"][0].update(bbox=[-1.1e6, 2, 3, 4]), r"beyond 1,000,000 pixels"),
        (lambda c: c["annotations"][0].update(iscrowd="no"), "iscrowd is 'no', expected 0 or 1"),
        (lambda c: c["annotations"][0].update(area="large"), "area is 'large', expected"),
        (lambda c: c["annotations"][0].update(bbox=[0.1, 0.2, 0.3, 0.4]), "1 of 1 boxes are under a pixel.* in pixels"),
        (lambda c: c["annotations"][0].update(image_id=8), "refers to image 8, which is not listed"),
        (lambda c: c["annotations"][0].update(category_id=4), "refers to category 4, which is not listed"),
        (lambda c: c["annotations"][0].update(image_id=float("inf")), "bad annotation"),
        (lambda c: c["annotations"][0].update(category_id=True), "bad annotation"),
    ],
)
def test_bad_coco_names_file_and_record(change: Callable[[dict[str, Any]], object], message: str, make_coco: MakeCoco) -> None:
    root = make_coco(IMAGES, [(7, 9, (1, 2, 3, 4))])
    edit(root, change)
    with pytest.raises(InputError, match=rf"instances_val2017\.json: .*{message}"):
        open_dataset(root, "val2017")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "[" * 100_000, "\x80"])
def test_not_coco_json(text: str, make_coco: MakeCoco) -> None:
    root = make_coco(IMAGES)
    (root / "annotations" / "instances_val2017.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        InputError, match=r"instances_val2017\.json: (not readable as JSON|not a COCO annotation file|is no UTF-8 text)"
    ):
        open_dataset(root, "val2017")


def test_coco_annotation_of_another_size_than_the_image(make_coco: MakeCoco) -> None:
    root = make_coco(IMAGES)
    edit(root, lambda c: c["images"][0].update(width=41))
    with pytest.raises(InputError, match=r"7\.png: the image is 40x30 but its annotation says 41x30"):
        open_dataset(root, "val2017").images[0].read()


# --- choosing a layout and a split


@pytest.mark.parametrize(
    ("wanted", "names", "chosen"),
    [
        ("val", [], None),
        ("val", ["train2017", "val2017"], "val2017"),
        ("train", ["train2017", "val2017"], "train2017"),
        ("train", ["test", "trainval"], "trainval"),
        ("val", ["test", "trainval"], "test"),
        ("val", ["test2017", "val2017"], "val2017"),
        # the exact name wins, and only the two roles stand for another name
        ("val", ["val", "val2017"], "val"),
        ("trainval", ["train", "trainval"], "trainval"),
        ("test", ["test2017"], None),
        ("val", ["train2017"], None),
        ("minival", ["val2017"], None),
    ],
)
def test_choose_split(wanted: str, names: list[str], chosen: str | None) -> None:
    if chosen:
        assert choose_split(Path("set"), wanted, names) == chosen
    else:
        with pytest.raises(InputError, match=f"set: no split '{wanted}'; found {', '.join(sorted(names))}"):
            choose_split(Path("set"), wanted, names)


def test_splits_of_a_folder(make_coco: MakeCoco) -> None:
    make_coco(IMAGES[:1], split="train2017")
    root = make_coco(IMAGES)
    assert open_dataset(root, "train").split == "train2017"
    assert len(open_dataset(str(root), "val")) == 2
    with pytest.raises(InputError, match="no split 'test'; found train2017, val2017"):
        open_dataset(root, "test")


def test_no_dataset(tmp_path: Path, make_coco: MakeCoco) -> None:
    with pytest.raises(InputError, match=r"no dataset layout that is known; found nothing; expected COCO .* or one COCO"):
        open_dataset(tmp_path, "val")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "gone", tmp_path / "file"):
        with pytest.raises(InputError, match=f"{path.name}: no such dataset folder"):
            open_dataset(path, "val")
    with pytest.raises(InputError, match="split 'val2017' has no images"):
        open_dataset(make_coco([]), "val")


# --- VOC

OBJECT = (
    "<object><name>{name}</name>{extra}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
    "<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
)
ANNOTATION = (
    "<annotation><filename>{file}</filename><size><width>40</width><height>30</height><depth>3</depth></size>"
    "{objects}</annotation>"
)


def voc_object(name: str, x1: float, y1: float, x2: float, y2: float, extra: str = "") -> str:
    return OBJECT.format(name=name, x1=x1, y1=y1, x2=x2, y2=y2, extra=extra)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two splits: `train` with a (no object, image of another suffix), `val` with b and c."""
    root = tmp_path / "voc"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    objects = {
        "a": "",
        "b": voc_object("ring", 1, 1, 40, 30, "<difficult>1</difficult>") + voc_object("dot", 5, 6, 5.5, 10),
        "c": voc_object("dot", 2, 3, 4, 5, "<difficult>0</difficult><truncated>1</truncated>"),
    }
    for stem, found in objects.items():
        suffix = ".png" if stem == "a" else ".jpg"
        cv2.imwrite(str(root / "JPEGImages" / f"{stem}{suffix}"), np.zeros((30, 40, 3), np.uint8))
        text = ANNOTATION.format(file=f"{stem}.jpg", objects=found)
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    main = root / "ImageSets" / "Main"
    (main / "train.txt").write_text("a\n\n")
    (main / "val.txt").write_text("b\r\nc\r\nb\n")
    (main / "dot_train.txt").write_text("a -1\n")
    (main / "dot_val.txt").write_text("b  1\nc  1\n")
    return root


def test_voc_counts_pixels_from_one(voc: Path) -> None:
    dataset = open_dataset(voc, "val")
    assert (dataset.split, dataset.class_names, dataset.category_ids) == ("val", ("dot", "ring"), (1, 2))
    first, second = dataset.images  # b once, though it is listed twice
    assert [image.path.name for image in dataset.images] == ["b.jpg", "c.jpg"]
    assert first.boxes.tolist() == [[0, 0, 40, 30], [4, 5, 5.5, 10]]
    assert first.class_ids.tolist() == [1, 0] and first.crowd.tolist() == [True, False]
    assert second.boxes.tolist() == [[1, 2, 4, 5]] and second.crowd.tolist() == [False]
    assert second.read().shape == (30, 40, 3)
    assert dataset.annotations[2] == {
        "id": 3,
        "image_id": second.image_id,
        "category_id": 1,
        "bbox": [1, 2, 3, 3],
        "area": 9,
        "iscrowd": 0,
    }
    assert [a["iscrowd"] for a in dataset.annotations] == [1, 0, 0]


def test_voc_classes_agree_across_splits(voc: Path) -> None:
    train = open_dataset(voc, "train")
    assert train.class_names == open_dataset(voc, "val").class_names
    assert [image.path.name for image in train.images] == ["a.png"] and train.annotations == ()


def test_voc_lists_of_single_classes_are_no_splits(voc: Path) -> None:
    with pytest.raises(InputError, match="no split 'dot_val'; found train, val"):
        open_dataset(voc, "dot_val")


@pytest.mark.parametrize(
    ("box", "read"),
    [
        ((7, 7, 7, 9), None),  # degenerate as written
        ((50, 3, 60, 9), None),
        ((0, 0, 5, 5), [0, 0, 5, 5]),  # counted from 0 after all
        ((31, 21, 50, 50), [30, 20, 40, 30]),
        ((1.5, 2.5, 3, 4), [0.5, 1.5, 3, 4]),
    ],
)
def test_voc_odd_boxes(voc: Path, box: tuple[float, ...], read: list[float] | None, caplog: pytest.LogCaptureFixture) -> None:
    (voc / "Annotations" / "c.xml").write_text(ANNOTATION.format(file="c.jpg", objects=voc_object("dot", *box)))
    with caplog.at_level(logging.WARNING):
        assert open_dataset(voc, "val").images[1].boxes.tolist() == ([read] if read else [])
    assert ("boxes have no area" in caplog.text) == (read is None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "no XML",
        "<annotation/>",
        '<?xml version="1.0" encoding="none-such"?><annotation/>',
        '<?xml version="1.0" encoding="shift_jis"?><annotation/>',
        ANNOTATION.format(file="c.jpg", objects="").replace("<width>40</width>", ""),
        ANNOTATION.format(file="c.jpg", objects="").replace("40", "0"),
        ANNOTATION.format(file="c.jpg", objects="").replace("40", "wide"),
        ANNOTATION.format(file="c.jpg", objects="<object/>"),
        ANNOTATION.format(file="c.jpg", objects=voc_object("", 1, 1, 2, 2)),
        ANNOTATION.format(file="c.jpg", objects=voc_object("dot", 5, 1, 2, 2)),
        ANNOTATION.format(file="c.jpg", objects=voc_object("dot", 1, 5, 2, 2)),
        ANNOTATION.format(file="c.jpg", objects=voc_object("dot", 1, 1, float("nan"), 2)),
        ANNOTATION.format(file="c.jpg", objects=voc_object("dot", 1, 1, float("inf"), 2)),
        ANNOTATION.format(file="c.jpg", objects=voc_object("dot", 1, 1, 2, 2)).replace("<xmin>1</xmin>", ""),
    ],
)
def test_bad_voc_annotation_is_named(voc: Path, text: str) -> None:
    (voc / "Annotations" / "c.xml").write_text(text)
    with pytest.raises(InputError, match=r"c\.xml: not a VOC annotation"):
        open_dataset(voc, "val")


def test_voc_missing_files_are_named(voc: Path) -> None:
    (voc / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(InputError, match="no image for c in JPEGImages"):
        open_dataset(voc, "val")
    (voc / "Annotations" / "c.xml").unlink()
    with pytest.raises(InputError, match=r"c\.xml: not a VOC annotation \(.*No such file"):
        open_dataset(voc, "val")
    (voc / "ImageSets" / "Main" / "val.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match=r"val\.txt: is no UTF-8 text"):
        open_dataset(voc, "val")


def test_a_voc_split_may_be_named_like_a_list_of_one_class(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "my_val.txt").write_text("c\n")
    assert [image.path.stem for image in open_dataset(voc, "my_val").images] == ["c"]


def test_a_voc_test_list_without_annotations_hinders_no_other_split(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "test.txt").write_text("unlabeled\n")
    assert len(open_dataset(voc, "val")) == 2
    with pytest.raises(InputError, match=r"unlabeled\.xml"):
        open_dataset(voc, "test")


def test_voc_without_an_object_or_an_image(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "val.txt").write_text("")
    with pytest.raises(InputError, match="Annotations: no object is marked in any image"):
        open_dataset(voc, "train")
    (voc / "ImageSets" / "Main" / "test.txt").write_text("b\n")
    with pytest.raises(InputError, match="split 'val' has no images"):
        open_dataset(voc, "val")


# --- the real ones


@pytest.mark.parametrize(
    ("name", "split", "images", "classes"),
    [("coco", "train", 288, 80), ("coco", "val", 79, 80), ("bccd", "train", 205, 3), ("bccd", "val", 87, 3)],
)
def test_real_datasets(name: str, split: str, images: int, classes: int) -> None:
    root = Path(os.environ.get("DATASETS", ""), name)
    if not os.environ.get("DATASETS") or not root.is_dir():
        pytest.skip(f"DATASETS names no folder with {name}/")
    dataset = open_dataset(root, split)
    assert (len(dataset), len(dataset.class_names)) == (images, classes)
    for image in dataset.images[:10]:
        assert image.read().shape == (image.height, image.width, 3)
    assert sum(len(image.boxes) for image in dataset.images) > images


@pytest.mark.perf
def test_a_million_annotations_load_in_ten_seconds(make_coco: MakeCoco) -> None:
    count = 10**6
    rng = np.random.default_rng(0)
    root = make_coco([(i, 640, 480, 0) for i in range(100)])
    boxes = rng.uniform(5, 200, (count, 4)).round(2).tolist()
    records = [
        {"id": i, "image_id": i % 100, "category_id": (3, 9)[i % 2], "bbox": box, "area": 100.5, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    edit(root, lambda content: content.update(annotations=records))
    start = time.perf_counter()
    dataset = open_dataset(root, "val2017")
    assert time.perf_counter() - start < 10
    assert len(dataset.truth) == count
