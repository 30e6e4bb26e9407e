"""Command line `python -m train.validate`: measures the COCO accuracy of a PyTorch checkpoint."""

from __future__ import annotations

import argparse
import logging
import shlex

from runtime import cli
from runtime.errors import InputError, ModelError
from runtime.evaluate import add_arguments, run
from runtime.files import check_writable
from train import checkpoint
from train.cli import add_model
from train.torch_backend import open_torch_backend

log = logging.getLogger(__name__)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "train.validate",
        "Measure the COCO accuracy of a checkpoint: the 12 COCO metrics, AP per class, and the score threshold to detect with.",
        "python -m train.validate --weights runs/train/best.pt --data datasets/coco",
    )
    add_model(parser)
    add_arguments(parser)
    return parser.parse_args(arguments)


def _check_storable(weights: str, size: tuple[int, int] | None) -> None:
    """Proves before long work that a threshold can be stored in the weights' file.

    Raises:
        InputError: published weights, or the threshold would be measured at another size than the checkpoint's own.
        OutputError: the folder cannot be written to.
    """
    try:
        own = checkpoint.load(weights).spec.input_size
    except ModelError as error:
        raise InputError(
            f"{weights}: --store needs a checkpoint of this project; make one of it with"
            f" `python -m train.weights {shlex.quote(weights)} --output weights.pt`"
        ) from error
    if size not in (None, own):
        raise InputError(
            f"{weights}: --store needs the checkpoint's own size, {own[0]}x{own[1]}; leave out --size, or store the threshold"
            " in the file that was exported at that size with `python -m runtime.evaluate --store`"
        )
    check_writable(weights)


def _store(weights: str, threshold: float) -> None:
    checkpoint.store_threshold(weights, threshold)
    log.info("%s stores the operating threshold %.8g", weights, threshold)
    log.info(
        "its hash is another one now: files exported from it before name the old one as their source, and keep their"
        " threshold; export it again"
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    backend = open_torch_backend(options.weights, options.size)
    if options.store:
        _check_storable(options.weights, options.size)
    run(backend, options, lambda threshold, _: _store(options.weights, threshold))
    return 0


if __name__ == "__main__":
    cli.run(main)
