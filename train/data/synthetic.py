"""Makes a small labeled set to try the toolchain on: `python -m train.data.synthetic --output DIR`.

Four kinds of shapes, each in shades of its own color, over textured backgrounds, in the COCO layout: sparse category
ids, the three size ranges, overlaps in their visible order, crowds, and images without objects. It can be learned in
minutes on a CPU.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime import cli
from runtime.errors import InputError
from runtime.files import PathLike, output_folder, read_json, write_json
from runtime.media.image import write_image

Polygon = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

# Category ids have gaps, as COCO's do.
CATEGORIES = {3: "circle", 7: "square", 18: "star", 44: "triangle"}
IMAGE_SIZES = ((256, 192), (192, 256), (224, 224), (288, 160))  # (width, height) in pixels
_CATEGORY_IDS = tuple(CATEGORIES)
_HUES = {3: 0.0, 7: 0.33, 18: 0.14, 44: 0.6}  # red, green, yellow, blue; of 1
_HUE_SPREAD = 0.05

# COCO's size ranges are small < 32^2 <= medium <= 96^2 < large, in pixels of area; the shapes keep clear of the limits.
_AREAS = ((300.0, 900.0), (1200.0, 6000.0), (9600.0, 13000.0))
_AREA_SHARES = (0.35, 0.5, 0.15)
_MOST_HIDDEN = 0.3
_MOST_IOU = 0.4  # two of one class closer than NMS tolerates could not both be found
_TRIES = 60
_SUPERSAMPLING = 4
_DESCRIPTION = "synthetic shapes"
_LARGEST = 1 << 30  # bytes of an annotation file: a million images


@dataclass
class _Scene:
    """An image being drawn, and the objects on it, the lowest first.

    `owner` is int `[H, W]`: the number of the object visible at a pixel, -1 for background, -2 for a crowd.
    """

    canvas: NDArray[np.float32]
    owner: NDArray[np.int64]
    objects: list[tuple[int, Polygon, int]] = field(default_factory=list)  # category id, outline, pixels covered
    crowds: list[tuple[int, Mask]] = field(default_factory=list)


def make_synthetic(root: PathLike, train: int = 400, val: int = 100, seed: int = 0) -> Path:
    """Writes the splits `train` and `val` under `root`; equal arguments give equal bytes.

    The annotations are written after all images, so that an interrupted run does not look like a whole set.

    Args:
        root: folder to write.
        train: number of training images, at least 1; of every ten one has no objects and one or two a crowd.
        val: number of validation images, at least 1.
        seed: of everything random.

    Returns:
        The folder.

    Raises:
        InputError: bad counts, a folder that cannot be written, or one that holds another set.
    """
    if min(train, val) < 1 or seed < 0:
        raise InputError(
            f"{train} training and {val} validation images with seed {seed}; expected at least 1 of each, seed >= 0"
        )
    folder = output_folder(root)
    counts = {"train": train, "val": val}
    targets = {split: folder / "annotations" / f"instances_{split}.json" for split in counts}
    for target in targets.values():
        _remove_own(target)
    contents = {split: _write_images(folder, split, count, seed) for split, count in counts.items()}
    for split, content in contents.items():
        write_json(targets[split], content)
    return folder


def _remove_own(target: Path) -> None:
    """Removes an annotation file of an earlier run; refuses to touch any other."""
    if not target.exists():
        return
    try:
        ours = read_json(target, _LARGEST)["info"]["description"] == _DESCRIPTION
    except (InputError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(f"{target}: already there and not a synthetic set; choose another --output")
    target.unlink()


def _write_images(folder: Path, split: str, count: int, seed: int) -> dict[str, Any]:
    """Draws and writes the images of a split; returns its COCO annotations."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = np.random.default_rng([seed, index, ("train", "val").index(split), 1])
        scene = _draw_scene(index, rng)
        height, width = scene.owner.shape
        name = f"{index + 1:06d}.jpg"
        write_image(folder / split / name, np.clip(np.rint(scene.canvas), 0, 255).astype(np.uint8))
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for record in _annotate(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **record})
    return {
        "info": {"description": _DESCRIPTION, "seed": seed, "split": split},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
    }


def _annotate(scene: _Scene) -> list[dict[str, Any]]:
    """Returns the COCO records of a scene; the boxes are those of the outlines, hidden parts included."""
    records = []
    for category, outline, _ in scene.objects:
        x1, y1, x2, y2 = _bounds(outline).round(2).tolist()
        records.append(
            {
                "category_id": category,
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": round(_area(outline), 2),
                "segmentation": [outline.round(2).ravel().tolist()],
                "iscrowd": 0,
            }
        )
    for category, mask in scene.crowds:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y, width, height = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
        records.append(
            {
                "category_id": category,
                "bbox": [float(value) for value in (x, y, width, height)],
                "area": float(mask.sum()),
                "segmentation": {"counts": run_lengths(mask), "size": list(mask.shape)},
                "iscrowd": 1,
            }
        )
    return records


def run_lengths(mask: Mask) -> list[int]:
    """Encodes a bool `[H, W]` mask as COCO's uncompressed run lengths: column by column, beginning with the zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], [0] if flat[0] else [], changes, [len(flat)]])
    return [int(length) for length in np.diff(edges)]


def _draw_scene(index: int, rng: Rng) -> _Scene:
    """Draws one image; its number decides what it must contain, so that small sets have some of everything."""
    width, height = IMAGE_SIZES[index % len(IMAGE_SIZES)]
    scene = _Scene(_background(width, height, rng), np.full((height, width), -1, np.int64))
    if index % 10 == 9:
        return scene
    if index % 7 == 2:
        _add_crowd(scene, rng)
    for number in range(int(rng.integers(3, 9))):
        # Every fourth image has an object laid over another on purpose, the others now and then.
        _add_object(scene, rng, over_another=number == 1 and (index % 4 == 1 or rng.random() < 0.2))
    return scene


def _background(width: int, height: int, rng: Rng) -> NDArray[np.float32]:
    """Draws a gradient between two colors, stripes or blotches on it, and noise; float32 `[height, width, 3]` in 0-255."""
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    angle = rng.uniform(0, 2 * math.pi)
    blend = ((x * math.cos(angle) + y * math.sin(angle)) / 3 + 0.5)[..., None]
    base = rng.uniform(50, 205) + rng.uniform(-12, 12, 3)
    canvas = base + rng.uniform(-35, 35, 3).mean() * blend
    texture = rng.integers(3)
    if texture == 1:
        angle, waves = rng.uniform(0, math.pi), rng.uniform(6, 25)
        canvas = canvas + 10 * np.sin(waves * (x * math.cos(angle) + y * math.sin(angle)))[..., None]
    if texture == 2:
        coarse = rng.normal(0, 14, (6, 8)).astype(np.float32)
        canvas = canvas + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    noise = rng.normal(0, rng.uniform(2, 6), (height, width, 1))
    return np.asarray(canvas + noise, np.float32)


def _add_object(scene: _Scene, rng: Rng, over_another: bool) -> None:
    """Draws one more object where it hides none of the others too much; nothing where there is no room."""
    height, width = scene.owner.shape
    for _ in range(_TRIES):
        category = _CATEGORY_IDS[rng.integers(len(_CATEGORY_IDS))]
        shape = _sized(category, rng.uniform(*_AREAS[rng.choice(len(_AREAS), p=_AREA_SHARES)]), rng)
        room = np.array([width, height]) - 2 - np.ptp(shape, axis=0)
        if room.min() < 0:
            continue
        corner = 1 + rng.random(2) * room
        if over_another and scene.objects:
            x1, y1, x2, y2 = _bounds(scene.objects[rng.integers(len(scene.objects))][1])
            wanted = rng.uniform((x1, y1), (x2, y2)) - np.ptp(shape, axis=0) / 2
            corner = np.clip(wanted, 1, 1 + room)
        outline = shape - shape.min(axis=0) + corner
        alpha = _coverage(outline, height, width)
        if _fits(scene, category, outline, alpha > 0.5, over_another):
            _paint(scene.canvas, alpha, outline, category, rng)
            scene.owner[alpha > 0.5] = len(scene.objects)
            scene.objects.append((category, outline, int((alpha > 0.5).sum())))
            return


def _fits(scene: _Scene, category: int, outline: Polygon, mask: Mask, over_another: bool) -> bool:
    """True if an object may be put here; enough of every object must remain visible.

    It lies on others if it is meant to, else clear of them (boxes may touch), and never on a crowd.
    """
    below = scene.owner[mask]
    if (below == -2).any() or (below >= 0).any() != over_another:
        return False
    visible = np.bincount(scene.owner[~mask & (scene.owner >= 0)], minlength=len(scene.objects))
    for left, (other, other_outline, covered) in zip(visible.tolist(), scene.objects):
        if left < (1 - _MOST_HIDDEN) * covered or (other == category and _iou(outline, other_outline) > _MOST_IOU):
            return False
    return True


def _add_crowd(scene: _Scene, rng: Rng) -> None:
    """Draws a dense cluster of tiny shapes of one class, later annotated as one region."""
    height, width = scene.owner.shape
    category = _CATEGORY_IDS[rng.integers(len(_CATEGORY_IDS))]
    columns, rows = (int(value) for value in rng.integers(4, 7, 2))
    pitch = 8.0
    corner = 3 + rng.random(2) * (np.array([width, height]) - 6 - pitch * np.array([columns + 1, rows + 1]))
    union = np.zeros((height, width), bool)
    for cell in np.ndindex(columns, rows):
        shape = _sized(category, rng.uniform(28, 44), rng)
        outline = shape - shape.min(axis=0) + corner + pitch * np.array(cell) + rng.uniform(-1, 1, 2)
        alpha = _coverage(outline, height, width)
        _paint(scene.canvas, alpha, outline, category, rng)
        union |= alpha > 0.5
    scene.crowds.append((category, union))
    scene.owner[union] = -2


def _sized(category: int, area: float, rng: Rng) -> Polygon:
    """Returns the outline of a shape of this area in square pixels, slightly turned; float64 `[P, 2]` xy around the origin."""
    name = CATEGORIES[category]
    corners = {"circle": 48, "square": 4, "star": 10, "triangle": 3}[name]
    angles = 2 * math.pi * np.arange(corners) / corners - math.pi / 2 + (math.pi / 4 if name == "square" else 0)
    radii = np.where(np.arange(corners) % 2, 0.5, 1.0) if name == "star" else np.ones(corners)
    angles = angles + rng.uniform(-0.25, 0.25)
    unit = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(unit * math.sqrt(area / _area(unit)), np.float64)


def _area(outline: Polygon) -> float:
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _bounds(outline: Polygon) -> NDArray[np.float64]:
    return np.concatenate([outline.min(axis=0), outline.max(axis=0)])


def _iou(first: Polygon, second: Polygon) -> float:
    """IoU of the boxes of two outlines."""
    a, b = _bounds(first), _bounds(second)
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def _coverage(outline: Polygon, height: int, width: int) -> NDArray[np.float32]:
    """Computes how much of each pixel lies inside the outline, float32 `[height, width]` in [0, 1]: the antialiasing."""
    x1, y1 = np.maximum(np.floor(outline.min(axis=0)).astype(int) - 1, 0).tolist()
    x2, y2 = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 1, [width, height]).tolist()
    fine = np.zeros(((y2 - y1) * _SUPERSAMPLING, (x2 - x1) * _SUPERSAMPLING), np.uint8)
    # fillPoly counts from pixel centers and takes 4 binary places.
    points = np.rint(((outline - [x1, y1]) * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(fine, [points], 255, shift=4)
    alpha = np.zeros((height, width), np.float32)
    alpha[y1:y2, x1:x2] = cv2.resize(fine, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return alpha


def _paint(canvas: NDArray[np.float32], alpha: NDArray[np.float32], outline: Polygon, category: int, rng: Rng) -> None:
    """Blends in a shade of the class's color, the most distant of a few from the background, with a little noise on it."""
    below = canvas[alpha > 0.5].mean(axis=0)
    hues = (_HUES[category] + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD, 4)) % 1
    shades = np.array([colorsys.hsv_to_rgb(hue, *rng.uniform((0.6, 0.5), 1)) for hue in hues])[:, ::-1] * 255
    color = shades[int(np.linalg.norm(shades - below, axis=1).argmax())]
    x1, y1, x2, y2 = [int(value) for value in (*np.floor(outline.min(axis=0)), *np.ceil(outline.max(axis=0)))]
    part, share = canvas[y1:y2, x1:x2], alpha[y1:y2, x1:x2, None]
    part += share * (color + rng.normal(0, 4, (*part.shape[:2], 1)) - part)


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser(
        "train.data.synthetic",
        "Write a small synthetic set in the COCO layout: circles, squares, stars and triangles.",
        "python -m train.data.synthetic --output data/shapes --train 400 --val 100",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--train", type=int, default=400, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal files (default: %(default)s)")
    options = parser.parse_args(arguments)
    print(make_synthetic(options.output, options.train, options.val, options.seed))
    return 0


if __name__ == "__main__":
    cli.run(main)
