"""Command line `python -m train.weights`: converts published weights to a checkpoint or backbone file of this project."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime import cli
from runtime.files import check_writable
from train import checkpoint
from train.weights import read_weights
from train.weights.backbone import Backbone, check_backbone, save_backbone
from train.weights.names import read_names


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "train.weights",
        "Convert published weights (the authors' checkpoints, Darknet's yolov3 and yolov3-spp, or the backbones"
        " darknet53.conv.74, mobilenet_v2, resnet50 and resnet101).",
        "python -m train.weights yolov3.weights --output yolov3.pt\n"
        "  python -m train.weights darknet53.conv.74 --output darknet53.pt",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the published file; what it is, is told by its content")
    parser.add_argument("--output", type=Path, required=True, help="the .pt file to write")
    parser.add_argument("--model", metavar="NAME", help="fail unless SOURCE is this recipe, variant or backbone")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line (default: COCO's for 80)")
    parser.add_argument(
        "--cfg", type=Path, metavar="FILE", help="of Darknet weights: takes its anchors and input size (default: as published)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cli.check_keeps(options.output, options.source)
    check_writable(options.output)
    classes = read_names(options.classes) if options.classes else None
    found = read_weights(options.source, options.model, classes, options.cfg)
    if isinstance(found, Backbone):
        save_backbone(options.output, check_backbone(options.source, found))
    else:
        checkpoint.restore(options.source, found)  # proves that the weights are whole and finite
        checkpoint.save(options.output, found)
    print(options.output)
    return 0


if __name__ == "__main__":
    cli.run(main)
