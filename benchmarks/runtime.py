"""Times preprocessing, decode and NMS against OpenCV, naive NumPy and Ultralytics.

The input is a 640x480 image at 608 pixels; decode and NMS get 30,324 anchors, 80 classes and random boxes. Naive
NumPy and Ultralytics must find the runtime's boxes before they are timed. Ultralytics is left out if it cannot be imported.

Example: `python -m benchmarks.runtime`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from benchmarks.runtime_references import (
    IOU,
    KEPT,
    SIDE,
    THRESHOLD,
    Floats,
    Ultralytics,
    find_ultralytics,
    naive_postprocess,
    naive_preprocess,
    opencv_preprocess,
)
from runtime import cli
from runtime.benchmark.images import made_up_image
from runtime.benchmark.timing import ends, interleave, milliseconds, spread
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.ops.boxes import area, xyxy_to_xywh
from runtime.ops.decode import decode
from runtime.ops.image import Image
from runtime.ops.preprocess import fit, preprocess
from runtime.spec import ModelSpec
from train.config import DARKNET_ANCHORS
from train.losses.yolo_targets import AnchorSet

Ways = dict[str, Callable[[], Any]]

CLASSES, STRIDES = 80, (32, 16, 8)
OURS = "ours"
# Milliseconds that ours may take.
_LIMITS = {"decode + NMS, 1,000 boxes": 3, "decode + NMS, 5,000 boxes": 15, "all outside inference, 1,000 boxes": 6}


def make_spec() -> ModelSpec:
    """Returns the full model's spec."""
    anchors = AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, guided=True).per_level
    return ModelSpec("benchmark", tuple(map(str, range(CLASSES))), (SIDE, SIDE), anchors, STRIDES)


class ReadyBackend:
    """A backend that infers nothing and returns the maps of one image that it was made with."""

    batch_size, title = None, "nothing"

    def __init__(self, spec: ModelSpec, maps: Sequence[Floats]) -> None:
        self.spec, self._maps = spec, [level[None] for level in maps]

    def infer(self, images: Floats) -> list[Floats]:
        return self._maps

    def close(self) -> None: ...


def make_maps(spec: ModelSpec, count: int, rng: np.random.Generator) -> list[Floats]:
    """Makes raw maps of one image in which exactly `count` random anchors score above the threshold."""
    shapes = [spec.map_shape(level) for level in range(3)]
    cells = spec.boxes_per_level()
    flags = np.zeros(sum(cells), bool)
    flags[rng.choice(sum(cells), count, replace=False)] = True
    maps = []
    for shape, marked in zip(shapes, np.split(flags, np.cumsum(cells)[:-1])):
        raw = rng.normal(-8, 0.5, (4, 5 + CLASSES, *shape[1:])).astype(np.float32)
        raw[:, :4] = rng.normal(0, 0.3, (4, 4, *shape[1:]))
        anchor, row, column = np.nonzero(marked.reshape(4, *shape[1:]))
        raw[anchor, 4, row, column] = rng.uniform(0, 5, len(anchor))
        raw[anchor, 5 + rng.integers(0, CLASSES, len(anchor)), row, column] = rng.uniform(0, 5, len(anchor))
        maps.append(raw.reshape(shape))
    return maps


def cases(image: Image, theirs: Ultralytics | None) -> dict[str, Ways]:
    """Lists for each case the ways to compute it, ours first."""
    spec = make_spec()
    preprocessing: Ways = {
        OURS: lambda: preprocess(image, spec)[0],
        "OpenCV (blobFromImageWithParams)": lambda: opencv_preprocess(image, spec),
        "naive numpy": lambda: naive_preprocess(image, spec),
    }
    if theirs:
        preprocessing[theirs.title] = lambda: theirs.preprocess(image)
    return {
        "preprocess": preprocessing,
        **{f"decode + NMS, {count:,} boxes": _postprocessing(count, image, spec, theirs) for count in (1000, 5000)},
        "all outside inference, 1,000 boxes": _outside(1000, image, spec, theirs),
    }


def _postprocessing(count: int, image: Image, spec: ModelSpec, theirs: Ultralytics | None) -> Ways:
    maps = make_maps(spec, count, np.random.default_rng(0))
    found = decode(maps, spec, THRESHOLD)
    assert len(found.scores) == count
    corners, ids = xyxy_to_xywh(found.boxes), found.class_ids.astype(np.int32)
    detector, geometry = _detector(spec, maps), fit(image.shape[1], image.shape[0], spec.input_size, spec.resize)
    ways: Ways = {
        OURS: lambda: detector.postprocess(maps, geometry),
        "our decode alone": lambda: decode(maps, spec, THRESHOLD),
        "OpenCV (NMSBoxesBatched, without decode)": lambda: cv2.dnn.NMSBoxesBatched(corners, found.scores, ids, THRESHOLD, IOU),
        "naive numpy": lambda: naive_postprocess(maps, spec, image),
    }
    _check_same(ways[OURS](), ways["naive numpy"](), "naive numpy")
    if theirs and (theirs.is_quick or count <= 1000):
        predictions = theirs.predictions(maps, spec)
        ways[f"{theirs.title}, decoded before"] = lambda: theirs.postprocess(predictions, image)
        _check_same(ways[OURS](), theirs.postprocess(predictions, image), theirs.title)
    return ways


def _outside(count: int, image: Image, spec: ModelSpec, theirs: Ultralytics | None) -> Ways:
    maps = make_maps(spec, count, np.random.default_rng(0))
    detector = _detector(spec, maps)
    ways: Ways = {
        OURS: lambda: detector(image),
        "naive numpy": lambda: (naive_preprocess(image, spec), naive_postprocess(maps, spec, image)),
    }
    if theirs:
        predictions = theirs.predictions(maps, spec)
        ways[f"{theirs.title}, decoded before"] = lambda: (theirs.preprocess(image), theirs.postprocess(predictions, image))
    return ways


def _detector(spec: ModelSpec, maps: Sequence[Floats]) -> Detector:
    return Detector(ReadyBackend(spec, maps), score_threshold=THRESHOLD, iou_threshold=IOU, max_detections=KEPT)


def _check_same(ours: Detections, other: Detections, name: str) -> None:
    """Checks that a reference finds the same boxes, but for one or two that rounding decides.

    Boxes in the letterbox border, which only the runtime leaves out, do not count.
    """
    found = other.boxes[area(other.boxes) > 0]
    shared = np.mean([(np.abs(ours.boxes - box).max(axis=1) < 0.01).any() for box in found])
    assert len(ours) == len(other) and shared >= 0.98, f"{name}: {shared:.0%} of its boxes are ours"


def measure(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Times every case: milliseconds by case and way, one value for each round; the ways take turns."""
    image = made_up_image(np.random.default_rng(0))
    return {
        case: interleave({name: lambda _, call=call: _second_call(call) for name, call in ways.items()}, repeats, warm_up=1)
        for case, ways in cases(image, find_ultralytics()).items()
    }


def _second_call(call: Callable[[], Any]) -> float:
    """Times the second of two calls: the first pays for the memory that the way before it gave back."""
    call()
    return milliseconds(call)


def summarize(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, dict[str, float]]]:
    """Summarizes the rounds of each way: the spread of its milliseconds, and of ours divided by it in the same round."""
    return {
        name: {"milliseconds": spread(values), "ours_to_it": spread([a / b for a, b in zip(times[OURS], values)])}
        for name, values in times.items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser("benchmarks.runtime", "Time preprocessing, decode and NMS.", "python -m benchmarks.runtime")
    parser.add_argument("--repeats", type=cli.positive, default=20, help="rounds (default: 20)")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    options = parser.parse_args(arguments)
    results = {case: summarize(times) for case, times in measure(options.repeats).items()}
    if options.json:
        print(json.dumps(results, indent=1))
        return 0
    for case, ways in results.items():
        limit = _LIMITS.get(case)
        print(f"{case}{f' (ours may take {limit} ms)' if limit else ''}")
        for name, found in ways.items():
            taken = found["milliseconds"]
            share = "" if name == OURS else _share(found["ours_to_it"])
            print(f"  {name:54} {taken['median']:8.2f} ms, at least {taken['min']:.2f}{share}")
    return 0


def _share(found: Mapping[str, float]) -> str:
    low, high = ends(found)
    return f"; ours takes {found['median']:.2f} of it ({found[low]:.2f} to {found[high]:.2f})"


if __name__ == "__main__":
    cli.run(main)
