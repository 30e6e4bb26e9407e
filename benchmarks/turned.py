"""Measures ΔAP on eight views of each image, turned and mirrored, for data that have no up and down and few images.

What rounding does to the detections of a view differs from view to view, so eight of them tell more than one. The views of an
image are drawn together: the bounds are those of as many images as there are.

Example: `python -m benchmarks.turned --engine model.onnx --compare model.int8.onnx --data datasets/cells`
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.verdict import matches_of
from runtime import cli
from runtime.datasets.dataset import Dataset, GroundTruth, LabeledImage
from runtime.datasets.open import open_dataset
from runtime.evaluation.bootstrap import compare
from runtime.media.image import write_image
from runtime.ops.image import Image

VIEWS = 8
_LEVEL = 0.95


def views_of(dataset: Dataset, folder: Path) -> Dataset:
    """Writes the views of each image, one after the other, and returns them with their objects."""
    images: list[LabeledImage] = []
    truths: list[GroundTruth] = []
    for entry in tqdm(dataset.images, desc="views", unit="image", disable=None, leave=False):
        image, objects = entry.read(), dataset.truth.where(dataset.truth.image_ids == entry.image_id)
        for view in range(VIEWS):
            seen = turned(image, view)
            number, path = len(images) + 1, folder / f"{entry.image_id}-{view}.png"
            write_image(path, seen)
            images.append(replace(entry, image_id=number, path=path, width=seen.shape[1], height=seen.shape[0]))
            boxes = turned_boxes(objects.boxes, image.shape[1], image.shape[0], view)
            truths.append(replace(objects, image_ids=np.full_like(objects.image_ids, number), boxes=boxes))
    fields = GroundTruth.__dataclass_fields__
    truth = GroundTruth(**{name: np.concatenate([getattr(item, name) for item in truths]) for name in fields})
    return replace(dataset, images=images, truth=truth)


def turned(image: Image, view: int) -> Image:
    """Turns an image by `view % 4` quarters counterclockwise; mirrors it then if `view` is 4 or more."""
    found = np.rot90(image, view % 4)
    return np.ascontiguousarray(found[:, ::-1] if view >= VIEWS // 2 else found)


def turned_boxes(boxes: NDArray[np.float64], width: int, height: int, view: int) -> NDArray[np.float64]:
    """Returns the boxes (left, top, width, height) `[N, 4]` as `turned` moves them with their image of this size."""
    found = boxes
    for _ in range(view % 4):
        left, top, across, down = found.T
        found = np.stack([top, width - left - across, down, across], axis=1)
        width, height = height, width
    if view >= VIEWS // 2:
        left, top, across, down = found.T
        found = np.stack([width - left - across, top, across, down], axis=1)
    return found


def measure(reference: Path, others: list[Path], dataset: Dataset) -> dict[str, dict[str, float]]:
    """Returns by file its AP, and ΔAP against the reference with its bounds, in points."""
    with tempfile.TemporaryDirectory() as folder:
        views = views_of(dataset, Path(folder))
        before = matches_of(reference, views)
        groups = np.arange(len(views.images)) // VIEWS
        found: dict[str, dict[str, float]] = {}
        for path in others:
            delta = compare(before, matches_of(path, views), groups=groups)
            bounds = delta.bounds(_LEVEL)
            ap = float(delta.reference[0]) + bounds.estimate
            found[str(path)] = {"ap": ap, "delta_ap": bounds.estimate, "lower": bounds.lower, "upper": bounds.upper}
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "benchmarks.turned",
        "Measure ΔAP on eight views of each image, for data that have no up and down and few images.",
        "python -m benchmarks.turned --engine model.onnx --compare model.int8.onnx --data datasets/cells",
    )
    parser.add_argument("--engine", type=Path, required=True, help="the reference")
    parser.add_argument("--compare", type=Path, action="append", required=True, help="file to hold against it; may be repeated")
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--split", default="val", help="split to take views of (default: val)")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    found = measure(options.engine, options.compare, open_dataset(options.data, options.split))
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, values in found.items():
        bounds = f"({values['lower']:+.2f}, {values['upper']:+.2f})"
        print(f"{name}: AP {values['ap']:.2f}, ΔAP {values['delta_ap']:+.2f} {bounds}")
    return 0


if __name__ == "__main__":
    cli.run(main)
