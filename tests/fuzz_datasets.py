"""Search for annotations that the dataset readers do not answer in one line, guided by their coverage.

    python tests/fuzz_datasets.py -max_total_time=600 FOLDER

The first byte of an input names the file that the rest becomes in a small dataset; see `fuzz_readers.py` for the rest.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from tests.fuzz_readers import alter, atheris, check_line, search
from tests.support import layouts

with atheris.instrument_imports(include=["runtime.datasets", "runtime.files"]):
    from runtime.datasets.open import open_dataset
from runtime.errors import InputError

_FOLDER = tempfile.TemporaryDirectory()
ROOT = Path(_FOLDER.name)
XML = (
    "<annotation><filename>0.png</filename><size><width>40</width><height>30</height><depth>3</depth></size><object>"
    "<name>dot</name><difficult>0</difficult><bndbox><xmin>4</xmin><ymin>3</ymin><xmax>24</xmax><ymax>15</ymax></bndbox>"
    "</object></annotation>"
)
YAML = json.dumps({"path": ".", "train": "images/train", "val": "images/val", "names": list(layouts.CLASSES)})
FILES = {
    b"C": "coco/annotations/instances_train2017.json",
    b"R": "roboflow/train/_annotations.coco.json",
    b"S": "single/result.json",
    b"V": "voc/Annotations/0.xml",
    b"I": "voc/ImageSets/Main/train.txt",
    b"Y": "yolo/data.yaml",
    b"L": "yolo/labels/train/0.txt",
}
TOKENS = (b"<object>", b"</object>", b"<!ENTITY a 'b'>", b"&a;", b"<polygon>", b"nan", b"-1", b"1e999", b"../", b"0.5 " * 6)


def make_datasets() -> list[bytes]:
    """Writes one small dataset of each layout; returns its files as inputs."""
    names = [f"{i}.png" for i in range(4)]
    for folder in ("coco/train2017", "roboflow/train", "single/images", "voc/JPEGImages"):
        for seed, name in enumerate(names):
            layouts.write_image(ROOT / folder / name, seed)
    layouts.make_yolo(ROOT / "yolo", YAML)
    for key in (b"C", b"R", b"S"):
        layouts.write(ROOT / FILES[key], layouts.coco(names))
    for name in names:
        layouts.write(ROOT / "voc/Annotations" / f"{Path(name).stem}.xml", XML.replace("0.png", name))
    layouts.write(ROOT / FILES[b"I"], "0\n1\n2\n")
    polygon = layouts.coco(names, segmentation=[[4, 3, 24, 3, 24, 15]], area=120.5, attributes={"occluded": True})
    return [key + (ROOT / path).read_bytes() for key, path in FILES.items()] + [b"C" + json.dumps(polygon).encode()]


def read(data: bytes) -> None:
    """Reads the dataset with one file replaced: what is taken in is sound, else it is refused in one short line."""
    path = ROOT / FILES.get(data[:1], FILES[b"C"])
    right = path.read_bytes()
    path.write_bytes(data[1:])
    try:
        dataset = open_dataset(ROOT / path.relative_to(ROOT).parts[0], "train")
    except InputError as error:
        check_line(str(error))
        return
    finally:
        path.write_bytes(right)
    for line in (*dataset.notes, *dataset.losses):
        check_line(line)
    for image in dataset.images:
        sides = image.boxes[:, 2:] - image.boxes[:, :2]
        assert np.isfinite(image.boxes).all() and (sides > 0).all() and (image.boxes >= 0).all(), image
        assert (image.boxes <= np.tile((image.width, image.height), 2)).all(), image
        assert ((image.class_ids >= 0) & (image.class_ids < len(dataset.class_names))).all(), image
        assert ROOT in image.path.resolve().parents, image.path
    assert np.isfinite(dataset.truth.boxes).all() and np.isfinite(dataset.truth.areas).all()


def mutate(data: bytes, limit: int, seed: int) -> bytes:
    """Changes bytes, a word, or one place of the JSON (YAML among it), and keeps the first byte."""
    rng = random.Random(seed)
    kind, rest = data[:1], data[1:]
    if rng.random() < 0.5 and kind in b"CRSY":
        try:
            return (kind + json.dumps(alter(json.loads(rest), rng)).encode("utf-8", "surrogatepass"))[:limit]
        except (ValueError, RecursionError):
            pass
    if rng.random() < 0.3:
        place = rng.randrange(len(rest) + 1)
        return (kind + rest[:place] + rng.choice(TOKENS) + rest[place + rng.randrange(12) :])[:limit]
    return (kind + atheris.Mutate(rest, limit - 1))[:limit]


if __name__ == "__main__":
    logging.disable()
    warnings.simplefilter("error")
    search(make_datasets(), read, mutate, sys.argv)
