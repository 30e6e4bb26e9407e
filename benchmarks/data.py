"""Times training batches of one process against two references, in the same run on the same files.

- `decode`: `cv2.imread` alone, the floor under any pipeline that starts from JPEG files;
- `naive`: the same augmentations as a chain of steps over the full image in float32, as they are usually written.

Example: `python -m benchmarks.data --data data/coco`
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from runtime import cli
from runtime.datasets.dataset import Dataset, LabeledImage
from runtime.datasets.open import open_dataset
from runtime.spec import ModelSpec
from train.data import AugmentConfig, TrainingSet, training_batches

Floats = NDArray[np.float32]
_MEAN_COLOR = (104.0, 116.0, 124.0)
_BATCH = 8


def measure(dataset: Dataset, side: int, rounds: int) -> dict[str, float]:
    """Times each way in one thread; returns images per second, the best of `rounds` alternating rounds."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    dataset = dataclasses.replace(dataset, images=dataset.images[: max(len(dataset) // _BATCH, 1) * _BATCH])  # whole batches
    spec = ModelSpec("benchmark", dataset.class_names, (side, side), (((16.0, 16.0),),) * 3)
    training_set = TrainingSet(dataset, spec, AugmentConfig(), seed=0)

    def ours(mixup: bool, epoch: int) -> None:
        for _ in training_batches(training_set, epoch, _BATCH, (side,), mixup, workers=0):
            pass

    ways: dict[str, Callable[[int], None]] = {
        "decode": lambda _: decode_all(dataset),
        "ours": lambda epoch: ours(False, epoch),
        "ours with mixup": lambda epoch: ours(True, epoch),
        "naive": lambda epoch: naive_epoch(dataset, spec, epoch, False),
        "naive with mixup": lambda epoch: naive_epoch(dataset, spec, epoch, True),
    }
    decode_all(dataset)  # the first reading comes from the disk
    speed = dict.fromkeys(ways, 0.0)
    for epoch in range(rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run(epoch)
            speed[name] = max(speed[name], len(dataset) / (time.perf_counter() - start))
    return speed


def decode_all(dataset: Dataset) -> None:
    """Decodes every image: the `decode` reference."""
    for image in dataset.images:
        cv2.imread(str(image.path))


def naive_epoch(dataset: Dataset, spec: ModelSpec, epoch: int, mixup: bool) -> None:
    """Makes one epoch, sample by sample, stacked to batches: the `naive` reference."""
    rng = np.random.default_rng(epoch)
    order = rng.permutation(len(dataset))
    for start in range(0, len(order), _BATCH):
        images = [naive_sample(dataset, int(i), spec, rng, mixup)[0] for i in order[start : start + _BATCH]]
        torch.from_numpy(np.stack(images))


def naive_sample(dataset: Dataset, index: int, spec: ModelSpec, rng: np.random.Generator, mixup: bool) -> tuple[Floats, Floats]:
    """Makes an augmented, normalized image `[3, H, W]` and its boxes, every step on the whole image in float32."""
    image, boxes = _naive_read(dataset.images[index])
    if mixup:
        image, boxes = _naive_mixup(image, boxes, *_naive_read(dataset.images[int(rng.integers(len(dataset)))]), rng)
    image = _naive_colors(image, rng)
    if rng.random() < 0.5:
        image, boxes = _naive_zoom(image, boxes, rng)
    image, boxes = _naive_crop(image, boxes, rng)
    if rng.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
        boxes = np.stack([image.shape[1] - boxes[:, 2], boxes[:, 1], image.shape[1] - boxes[:, 0], boxes[:, 3]], axis=1)
    if rng.random() < 0.5:
        image, boxes = _naive_affine(image, boxes, rng)
    return _naive_input(image, boxes, spec)


def _naive_read(record: LabeledImage) -> tuple[Floats, Floats]:
    return record.read().astype(np.float32), record.boxes[~record.crowd]


def _naive_mixup(
    image: Floats, boxes: Floats, other: Floats, other_boxes: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    share = rng.beta(1.5, 1.5)
    canvas = np.zeros((*np.maximum(image.shape[:2], other.shape[:2]), 3), np.float32)
    canvas[: image.shape[0], : image.shape[1]] = image * np.float32(share)
    canvas[: other.shape[0], : other.shape[1]] += other * np.float32(1 - share)
    return canvas, np.concatenate([boxes, other_boxes])


def _naive_colors(image: Floats, rng: np.random.Generator) -> Floats:
    if rng.random() < 0.5:
        image = np.clip(image + np.float32(rng.uniform(-32, 32)), 0, 255)
    if rng.random() < 0.5:
        image = np.clip(image * np.float32(rng.uniform(0.5, 1.5)), 0, 255)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image / np.float32(255), cv2.COLOR_BGR2HSV)
        hsv[..., 1] = np.clip(hsv[..., 1] * np.float32(rng.uniform(0.5, 1.5)), 0, 1)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * np.float32(255)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image / np.float32(255), cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0] + np.float32(rng.uniform(-36, 36))) % 360
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * np.float32(255)
    return np.asarray(image, np.float32)


def _naive_zoom(image: Floats, boxes: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    height, width = image.shape[:2]
    ratio = rng.uniform(1, 4)
    canvas = np.empty((round(height * ratio), round(width * ratio), 3), np.float32)
    canvas[:] = _MEAN_COLOR
    x, y = int(rng.integers(canvas.shape[1] - width + 1)), int(rng.integers(canvas.shape[0] - height + 1))
    canvas[y : y + height, x : x + width] = image
    return canvas, boxes + np.array([x, y, x, y], np.float32)


def _naive_crop(image: Floats, boxes: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Crops as SSD does, in a loop over tries and boxes."""
    height, width = image.shape[:2]
    least = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)[rng.integers(7)]
    for _ in range(0 if least is None else 50):
        scale = rng.uniform(0.3, 1.0)
        aspect = math.sqrt(rng.uniform(max(0.5, scale**2), min(2, 1 / scale**2)))
        w, h = max(int(width * scale * aspect), 1), max(int(height * scale / aspect), 1)
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        kept, best = [], 0.0
        for x1, y1, x2, y2 in boxes.tolist():
            shared = max(min(x2, x + w) - max(x1, x), 0) * max(min(y2, y + h) - max(y1, y), 0)
            best = max(best, shared / (w * h + (x2 - x1) * (y2 - y1) - shared))
            if x <= (x1 + x2) / 2 <= x + w and y <= (y1 + y2) / 2 <= y + h:
                kept.append([max(x1 - x, 0), max(y1 - y, 0), min(x2 - x, w), min(y2 - y, h)])
        if not len(boxes) or (kept and best >= (least or 0.0)):
            return image[y : y + h, x : x + w].copy(), np.array(kept, np.float32).reshape(-1, 4)
    return image, boxes


def _naive_affine(image: Floats, boxes: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    height, width = image.shape[:2]
    center, angle, scale = (width / 2, height / 2), rng.uniform(-10, 10), rng.uniform(0.9, 1.1)
    matrix = np.asarray(cv2.getRotationMatrix2D(center, angle, scale), np.float64)
    matrix[0, 1] += math.tan(math.radians(rng.uniform(-2, 2)))
    matrix[:, 2] += rng.uniform(-0.1, 0.1, 2) * (width, height)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    enclosing = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    clipped = np.clip(enclosing, 0, [width, height, width, height]).astype(np.float32)
    warped = cv2.warpAffine(image, matrix, (width, height), borderValue=_MEAN_COLOR)
    return np.asarray(warped, np.float32), clipped


def _naive_input(image: Floats, boxes: Floats, spec: ModelSpec) -> tuple[Floats, Floats]:
    """Letterboxes, then normalizes by the formula."""
    side = spec.input_size[0]
    height, width = image.shape[:2]
    scale = min(side / width, side / height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    canvas = np.full((side, side, 3), spec.pad_value, np.float32)
    x, y = (side - size[0]) // 2, (side - size[1]) // 2
    canvas[y : y + size[1], x : x + size[0]] = cv2.resize(image, size)
    boxes = boxes * np.float32(scale) + np.array([x, y, x, y], np.float32)
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= 6).all(axis=1)]
    normal = (canvas[..., ::-1] / np.float32(255) - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)), boxes


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser(
        "benchmarks.data",
        "Time training batches of one process against bare decoding and a naive chain of steps.",
        "python -m benchmarks.data --data data/coco --json",
    )
    parser.add_argument("--data", type=Path, required=True, help="dataset folder; its train split is read")
    parser.add_argument("--size", type=int, default=608, help="input side in pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many rounds counts (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    options = parser.parse_args(arguments)
    speed = measure(open_dataset(options.data, "train"), options.size, max(options.rounds, 1))
    rows = [
        {
            "way": name,
            "images_per_second": value,
            "to_decode": value / speed["decode"],
            "to_naive": value / speed["naive"],
        }
        for name, value in speed.items()
    ]
    if options.json:
        print(json.dumps({"size": options.size, "results": rows}, indent=1))
        return 0
    print(f"{'':18}{'images/s':>10}{'/ decode':>10}{'/ naive':>10}")
    for row in rows:
        print(f"{row['way']:18}{row['images_per_second']:10.1f}{row['to_decode']:10.2f}{row['to_naive']:10.2f}")
    return 0


if __name__ == "__main__":
    cli.run(main)
