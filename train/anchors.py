"""Command line `python -m train.anchors`: fits anchors to a dataset."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import cv2
import numpy as np

from runtime import cli
from runtime.datasets.options import add_data_options, open_split
from runtime.datasets.summary import require_objects
from runtime.errors import InputError
from runtime.files import check_writable
from runtime.media.image import write_image
from runtime.ops.image import Image
from runtime.viz.canvas import INK, paper, titled, write
from train.data.anchor_fit import RECALL_IOU, Fit, Floats, Shapes, box_shapes, fit_anchors, measure_fit
from train.overrides import with_size
from train.recipes import recipe

log = logging.getLogger("train.anchors")

_PLOT = 600  # side in pixels
_DOT, _OLD, _NEW = (215, 190, 160), (60, 60, 220), (60, 140, 20)
_MOST_DOTS = 20_000


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "train.anchors",
        "Fit anchors to the boxes of a dataset, and compare them with a recipe's.",
        "python -m train.anchors --data datasets/mine --size 416 --output runs/anchors.png",
    )
    add_data_options(parser)
    parser.add_argument("--train-split", default="train", help="split to train on (default: the one that plays `train`)")
    parser.add_argument("--recipe", default="yolov3-asff", help="to compare with (default: %(default)s)")
    parser.add_argument("--size", type=cli.image_side, help="input side (default: the recipe's)")
    parser.add_argument("--seed", type=cli.count, default=0, help="of the search (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", type=Path, help="image of the boxes' shapes with the anchors, .png")
    return parser.parse_args(arguments)


def plot(shapes: Floats, before: Shapes, after: Shapes) -> Image:
    """Draws width against height of the boxes `[N, 2]`, with two sets of anchors, uint8 BGR."""
    side = max(float(shapes.max()), np.max(before), np.max(after)) * 1.05
    canvas = paper(_PLOT, _PLOT)
    cv2.rectangle(canvas, (0, 0), (_PLOT - 1, _PLOT - 1), INK)
    dots = shapes[np.linspace(0, len(shapes) - 1, min(len(shapes), _MOST_DOTS)).astype(int)]

    def mark(sides: Floats, radius: int, color: tuple[int, int, int], thickness: int) -> None:
        for x, y in np.rint(sides / side * (_PLOT - 1)).astype(int).tolist():
            cv2.circle(canvas, (x, _PLOT - 1 - y), radius, color, thickness, cv2.LINE_AA)

    mark(dots, 1, _DOT, -1)
    mark(np.array(before), 5, _OLD, 2)
    mark(np.array(after), 6, _NEW, -1)
    write(canvas, f"0 to {side:.0f} pixels of the input on both axes", (10, 12), 0.4, INK)
    return titled("Box shapes: width and height", "circles: the recipe's anchors; disks: fitted", canvas)


def _describe(name: str, fit: Fit) -> str:
    levels = ", ".join(f"{count} at stride {stride}" for count, stride in zip(fit.per_level, (32, 16, 8)))
    return f"{name:8} recall {100 * fit.recall:.1f} at IoU {RECALL_IOU}, mean IoU {fit.mean_iou:.3f}; boxes: {levels}"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.output:
        cli.check_suffix(options.output, ".png")
        check_writable(options.output)
    config = recipe(options.recipe)
    if config.model.detector != "yolov3":
        raise InputError(f"{options.recipe}: RetinaNet's anchors follow from its strides; choose another --recipe")
    config = with_size(config, options.size or config.size)
    dataset = open_split(options, options.train_split)
    require_objects(dataset, "fit anchors to")
    shapes = box_shapes(dataset, config.size, config.resize)
    found = fit_anchors(shapes, len(config.model.anchors), options.seed)
    before, after = measure_fit(shapes, config.model.anchors), measure_fit(shapes, found)
    argument = "--anchors " + " ".join(f"{width:g},{height:g}" for width, height in found)
    if options.json:
        fits = {"recipe": before, "fitted": after}
        values = {name: {"anchors": a, **vars(fit)} for (name, fit), a in zip(fits.items(), (config.model.anchors, found))}
        print(json.dumps({"size": config.size, "boxes": len(shapes), **values}))
    else:
        print(f"{len(shapes)} boxes of {dataset.split} at {config.size} pixels, {options.recipe}")
        print(_describe("recipe", before))
        print(_describe("fitted", after))
        print(f"--size {config.size} {argument}")
    if options.output:
        write_image(options.output, plot(shapes, config.model.anchors, found))
        log.info("drawn: %s", options.output)
    return 0


if __name__ == "__main__":
    cli.run(main)
