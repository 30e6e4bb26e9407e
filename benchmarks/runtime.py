"""`python -m benchmarks.runtime`: all that happens to an image outside inference, against OpenCV, naive numpy and Ultralytics.

A 640x480 image at 608 pixels: preprocessing; decode and NMS of 30,324 anchors and 80 classes, random boxes; both together.
Every reference is first held to our own result. Ultralytics takes part where it can be imported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime import cli
from runtime.benchmark.images import made_up_image
from runtime.benchmark.timing import ends, interleave, milliseconds, spread
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.ops.boxes import area, xyxy_to_cxcywh, xyxy_to_xywh
from runtime.ops.decode import decode
from runtime.ops.image import Image
from runtime.ops.preprocess import fit, preprocess
from runtime.spec import ModelSpec
from train.config import DARKNET_ANCHORS
from train.losses.yolo_targets import AnchorSet

Floats = NDArray[np.float32]
Ways = dict[str, Callable[[], Any]]

SIDE, CLASSES, STRIDES = 608, 80, (32, 16, 8)
THRESHOLD, IOU, KEPT = 0.01, 0.6, 100
OURS = "ours"
# Milliseconds that ours may take.
_LIMITS = {"decode + NMS, 1,000 boxes": 3, "decode + NMS, 5,000 boxes": 15, "all outside inference, 1,000 boxes": 6}


def make_spec() -> ModelSpec:
    """The full model's description."""
    anchors = AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, guided=True).per_level
    return ModelSpec("benchmark", tuple(map(str, range(CLASSES))), (SIDE, SIDE), anchors, STRIDES)


class ReadyBackend:
    """A backend that infers nothing: it gives the maps of one image that it was made with."""

    batch_size, title = None, "nothing"

    def __init__(self, spec: ModelSpec, maps: Sequence[Floats]) -> None:
        self.spec, self._maps = spec, [level[None] for level in maps]

    def infer(self, images: Floats) -> list[Floats]:
        return self._maps

    def close(self) -> None: ...


def make_maps(spec: ModelSpec, count: int, rng: np.random.Generator) -> list[Floats]:
    """Raw maps of one image in which exactly `count` random anchors score above the threshold."""
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


# --- OpenCV alone


def opencv_preprocess(image: Image, spec: ModelSpec) -> Floats:
    """The network's input float32 `[1, 3, H, W]` by one call of OpenCV's own letterbox."""
    wanted = cv2.dnn.Image2BlobParams()
    wanted.size, wanted.swapRB, wanted.paddingmode = spec.input_size[::-1], True, cv2.dnn.DNN_PMODE_LETTERBOX
    wanted.borderValue = (spec.pad_value,) * 3
    wanted.mean = tuple(255 * value for value in spec.mean)
    wanted.scalefactor = tuple(1 / (255 * value) for value in spec.std)
    return cv2.dnn.blobFromImageWithParams(image, wanted)


# --- naive numpy: what one writes first


def naive_preprocess(image: Image, spec: ModelSpec) -> Floats:
    """As `opencv_preprocess`, every step as its formula reads."""
    geometry = fit(image.shape[1], image.shape[0], spec.input_size, spec.resize)
    left, right, x = _neighbors(geometry.resized_width, image.shape[1])
    top, bottom, y = _neighbors(geometry.resized_height, image.shape[0])
    pixels, x, y = image.astype(np.float32), x[None, :, None], y[:, None, None]
    upper = pixels[top][:, left] * (1 - x) + pixels[top][:, right] * x
    lower = pixels[bottom][:, left] * (1 - x) + pixels[bottom][:, right] * x
    canvas = np.full((*spec.input_size, 3), spec.pad_value, np.float32)
    rows, columns = slice(geometry.pad_y, geometry.pad_y + len(y)), slice(geometry.pad_x, geometry.pad_x + x.shape[1])
    canvas[rows, columns] = upper * (1 - y) + lower * y
    normal = (canvas[..., ::-1] / np.float32(255) - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def _neighbors(size: int, original: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """For each resized pixel the two it lies between, and how far it is from the first."""
    place = np.clip((np.arange(size) + 0.5) * original / size - 0.5, 0, original - 1)
    first = place.astype(np.int64)
    return first, np.minimum(first + 1, original - 1), (place - first).astype(np.float32)


def naive_decode(maps: Sequence[Floats], spec: ModelSpec) -> tuple[Floats, Floats]:
    """Boxes `[N, 4]` xyxy in input pixels and scores `[N, classes]` of every anchor."""
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
    return boxes, scores


def naive_postprocess(maps: Sequence[Floats], spec: ModelSpec, image: Image) -> Detections:
    """Decode every anchor and class, then filter, then NMS box by box."""
    boxes, scores = naive_decode(maps, spec)
    best, classes = scores.max(axis=1), scores.argmax(axis=1)
    keep = best >= THRESHOLD
    boxes, best, classes = boxes[keep], best[keep], classes[keep]
    original = fit(image.shape[1], image.shape[0], spec.input_size, spec.resize).to_original(boxes)
    inside = ((original[:, 2:] - original[:, :2]) > 0).all(axis=1)
    boxes, original, best, classes = boxes[inside], original[inside], best[inside], classes[inside]
    kept = naive_nms(boxes, best, classes)[:KEPT]
    return Detections.from_arrays(original[kept], best[kept], classes[kept])


def naive_nms(boxes: Floats, scores: Floats, classes: NDArray[np.int64]) -> list[int]:
    """Indices of all survivors, best first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(int(first))
        sides = np.minimum(boxes[first, 2:], boxes[rest, 2:]) - np.maximum(boxes[first, :2], boxes[rest, :2])
        shared = np.clip(sides, 0, None).prod(axis=1)
        overlaps = shared / (areas[first] + areas[rest] - shared) > IOU
        order = rest[~(overlaps & (classes[first] == classes[rest]))]
    return kept


# --- Ultralytics


class Ultralytics:
    """Its letterbox and its NMS, with the conversions between them that its predictor makes.

    Raises:
        ImportError: it is not installed, or does not work here; some of its versions raise other errors.
    """

    def __init__(self) -> None:
        threads = cv2.getNumThreads()
        with contextlib.redirect_stdout(sys.stderr):  # it greets
            with contextlib.suppress(Exception):
                import torchvision  # noqa: F401  # whose NMS it takes if someone has imported it, and its own otherwise
            import ultralytics
            from ultralytics.data.augment import LetterBox
            from ultralytics.utils import ops

            try:
                from ultralytics.utils.nms import non_max_suppression
            except ImportError:  # where it was until 8.3
                non_max_suppression = ops.non_max_suppression
        cv2.setNumThreads(threads)  # which it sets to 0 for the whole process
        import torch

        self._torch, self._ops, self._nms = torch, ops, non_max_suppression
        self._letterbox = LetterBox((SIDE, SIDE), auto=False)
        # Its own NMS takes seconds for 5,000 boxes, and gives up on some.
        self.is_quick = sys.modules.get("torchvision") is not None
        self.title = f"Ultralytics {ultralytics.__version__} ({'torchvision' if self.is_quick else 'its own'} NMS)"

    def preprocess(self, image: Image) -> Any:
        """Float tensor `[1, 3, H, W]` in [0, 1]: it has no mean and deviation."""
        batch = np.stack([self._letterbox(image=image)])[..., ::-1].transpose(0, 3, 1, 2)
        return self._torch.from_numpy(np.ascontiguousarray(batch)).float() / 255

    def predictions(self, maps: Sequence[Floats], spec: ModelSpec) -> Any:
        """What its models give: the decoded boxes and scores of every anchor, `[1, 4 + classes, N]`."""
        boxes, scores = naive_decode(maps, spec)
        rows = np.concatenate([xyxy_to_cxcywh(boxes), scores], axis=1)
        return self._torch.from_numpy(np.ascontiguousarray(rows.T[None]))

    def postprocess(self, predictions: Any, image: Image) -> Detections:
        """Filter, NMS, and back to the image's own pixels."""
        found = self._nms(predictions, THRESHOLD, IOU, max_det=KEPT)[0]
        found[:, :4] = self._ops.scale_boxes((SIDE, SIDE), found[:, :4], image.shape)
        found = found.cpu().numpy()
        return Detections.from_arrays(found[:, :4], found[:, 4], found[:, 5].astype(np.int64))


def find_ultralytics() -> Ultralytics | None:
    """None where it cannot be imported, which is said on stderr."""
    try:
        return Ultralytics()
    except Exception as error:  # a broken installation may raise anything
        print(f"without Ultralytics: {type(error).__name__}: {error}", file=sys.stderr)
        return None


# --- what is compared


def cases(image: Image, theirs: Ultralytics | None) -> dict[str, Ways]:
    """By case the ways to do it, ours first."""
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
    """Milliseconds by case and way, in each of so many rounds in which the ways take turns."""
    image = made_up_image(np.random.default_rng(0))
    return {
        case: interleave({name: lambda _, call=call: _second_call(call) for name, call in ways.items()}, repeats, warm_up=1)
        for case, ways in cases(image, find_ultralytics()).items()
    }


def _second_call(call: Callable[[], Any]) -> float:
    """Milliseconds of the second of two calls: the first pays for the memory that the way before it gave back."""
    call()
    return milliseconds(call)


def summarize(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, dict[str, float]]]:
    """By way: its milliseconds, and ours as a share of it in the same round; each as a spread."""
    return {
        name: {"milliseconds": spread(values), "ours_to_it": spread([a / b for a, b in zip(times[OURS], values)])}
        for name, values in times.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = cli.parser("benchmarks.runtime", "All but inference, at 608 pixels.", "python -m benchmarks.runtime")
    parser.add_argument("--repeats", type=cli.positive, default=20, help="rounds (default: 20)")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    options: argparse.Namespace = parser.parse_args(arguments)
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
