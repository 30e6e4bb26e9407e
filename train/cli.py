"""Command-line arguments that the commands on PyTorch models share."""

from __future__ import annotations

import argparse

from runtime import cli
from train.weights import WEIGHTS_HELP


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds `--weights` and `--size`, the arguments of `open_torch_backend`, to a command that runs a model in PyTorch."""
    parser.add_argument("--weights", required=True, help=WEIGHTS_HELP)
    parser.add_argument("--size", type=cli.image_size, help="side or HEIGHTxWIDTH, multiples of 32 (default: the checkpoint's)")
