"""Command line `python -m train.visualize`: draws how a checkpoint with ASFF fuses its levels."""

from __future__ import annotations

import argparse

from runtime import cli
from runtime.visualize import add_arguments, show
from train.cli import add_model
from train.torch_backend import open_torch_backend


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "train.visualize",
        "Draw how a model with ASFF fuses its levels: weight maps, activations, and which level detected what.",
        "python -m train.visualize --weights runs/train/best.pt --source photos/ --output seen/",
    )
    add_model(parser)
    add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    show(open_torch_backend(options.weights, options.size), options)
    return 0


if __name__ == "__main__":
    cli.run(main)
