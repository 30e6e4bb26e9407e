"""`python -m benchmarks.postprocess`: decode and NMS at 608 pixels against OpenCV's batched NMS alone and a naive numpy decode.

30,324 anchors, 80 classes, random boxes; medians of alternating runs in this process.
"""

from __future__ import annotations

import argparse
import json

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import alternate
from runtime import cli
from runtime.boxes import xyxy_to_xywh
from runtime.decode import decode
from runtime.detector import Detector
from runtime.preprocess import fit
from runtime.spec import ModelSpec
from train.assign import AnchorSet
from train.config import DARKNET_ANCHORS

SIDE, CLASSES, STRIDES = 608, 80, (32, 16, 8)
THRESHOLD = 0.01


def make_spec() -> ModelSpec:
    """The full model's description."""
    anchors = AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, guided=True).per_level
    return ModelSpec("benchmark", tuple(map(str, range(CLASSES))), (SIDE, SIDE), anchors, STRIDES)


class _NoBackend:
    """Enough of a backend to build a `Detector` whose postprocessing is called directly."""

    batch_size = None

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def infer(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return []

    def close(self) -> None: ...


def make_maps(spec: ModelSpec, count: int, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Raw maps of one picture in which exactly `count` random anchors score above the threshold."""
    shapes = [spec.map_shape(level) for level in range(3)]
    cells = [len(spec.anchors[level]) * shape[1] * shape[2] for level, shape in enumerate(shapes)]
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


def naive_decode(maps: list[NDArray[np.float32]], spec: ModelSpec) -> tuple[NDArray[np.float32], ...]:
    """Decode every anchor and class, then filter: what one writes first."""
    parts = []
    for level, raw in enumerate(maps):
        stride, anchors = spec.strides[level], np.array(spec.anchors[level], np.float32)
        t = raw.reshape(len(anchors), 5 + CLASSES, *raw.shape[1:]).transpose(0, 2, 3, 1)
        rows, columns = np.mgrid[: raw.shape[1], : raw.shape[2]].astype(np.float32)
        probabilities = 1 / (1 + np.exp(-t[..., 4:]))
        x, y = (1 / (1 + np.exp(-t[..., 0])) + columns) * stride, (1 / (1 + np.exp(-t[..., 1])) + rows) * stride
        w, h = anchors[:, 0, None, None] * np.exp(t[..., 2]), anchors[:, 1, None, None] * np.exp(t[..., 3])
        scores = probabilities[..., :1] * probabilities[..., 1:]
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)
        parts.append((boxes.reshape(-1, 4), scores.reshape(-1, CLASSES)))
    boxes, scores = (np.concatenate(values) for values in zip(*parts))
    best, classes = scores.max(axis=1), scores.argmax(axis=1)
    keep = best >= THRESHOLD
    return boxes[keep], best[keep], classes[keep]


def measure(count: int) -> dict[str, float]:
    """Milliseconds of each way at `count` boxes above the threshold."""
    spec = make_spec()
    maps = make_maps(spec, count, np.random.default_rng(0))
    found = decode(maps, spec, THRESHOLD)
    assert len(found.scores) == count
    corners = xyxy_to_xywh(found.boxes)

    detector = Detector(_NoBackend(spec), score_threshold=THRESHOLD)
    geometry = fit(640, 480, spec.input_size, spec.resize)
    times = alternate(
        {
            "ours": lambda: detector.postprocess(maps, geometry),
            "decode alone": lambda: decode(maps, spec, THRESHOLD),
            "cv2.dnn.NMSBoxesBatched alone": lambda: cv2.dnn.NMSBoxesBatched(
                corners, found.scores, found.class_ids.astype(np.int32), THRESHOLD, 0.6
            ),
            "naive decode alone": lambda: naive_decode(maps, spec),
        },
        repeats=15,
    )
    return {"boxes": count, **times}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = cli.parser("benchmarks.postprocess", "Decode and NMS at 608 pixels.", "python -m benchmarks.postprocess")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    options: argparse.Namespace = parser.parse_args(arguments)
    rows = [measure(count) for count in (1000, 5000)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print("decode + NMS at 608 (30,324 anchors, 80 classes), one picture")
    for row in rows:
        print(f"  {row.pop('boxes')} boxes above threshold")
        ours = row["ours"]
        for name, milliseconds in row.items():
            print(f"    {name:32} {milliseconds:8.2f} ms  {milliseconds / ours:6.2f} x ours")
    return 0


if __name__ == "__main__":
    cli.run(main)
