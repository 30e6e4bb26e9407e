"""Command line `python -m train.validate`: measures the COCO accuracy of a PyTorch checkpoint."""

from __future__ import annotations

import argparse

from runtime import cli
from runtime.evaluate import add_arguments, measure, report
from train.cli import add_model
from train.torch_backend import open_torch_backend


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "train.validate",
        "Measure the COCO accuracy of a checkpoint: the 12 COCO metrics and AP per class.",
        "python -m train.validate --weights runs/train/best.pt --data datasets/coco",
    )
    add_model(parser)
    add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    report(measure(open_torch_backend(options.weights, options.size), options), options)
    return 0


if __name__ == "__main__":
    cli.run(main)
