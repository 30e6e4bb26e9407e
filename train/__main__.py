"""`python -m train`: train a detector."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from runtime import cli
from runtime.errors import InputError
from train import checkpoint
from train.config import TrainConfig
from train.loop import RunOptions, train
from train.recipes import RECIPES, recipe

log = logging.getLogger("train")

_OVERRIDES = ("size", "epochs", "batch", "learning_rate", "resize", "evaluate_every", "seed")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments; what overrides the recipe is None unless given."""
    parser = cli.parser(
        "train",
        "Train a detector on a COCO- or VOC-layout dataset.",
        "python -m train --data datasets/bccd --recipe yolov3-asff-small --output runs/bccd\n"
        "  python -m train --data datasets/bccd --resume runs/bccd",
    )
    parser.add_argument("--data", type=Path, help="dataset folder (needed unless --list)")
    parser.add_argument("--recipe", default="yolov3-asff", help="named variant (default: yolov3-asff); see --list")
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    parser.add_argument("--output", type=Path, help="run folder (default: runs/<recipe>)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in --output")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run from its folder")
    parser.add_argument("--train-split", default="train", help="split to train on (default: the one that plays `train`)")
    parser.add_argument("--val-split", default="val", help="split to evaluate on (default: the one that plays `val`)")
    parser.add_argument("--size", type=cli.image_side, help="input side, a multiple of 32 (default: the recipe's)")
    parser.add_argument("--epochs", type=cli.positive, help="default: the recipe's")
    parser.add_argument("--batch", type=cli.positive, help="pictures a step (default: the recipe's)")
    parser.add_argument("--learning-rate", type=float, help="peak rate (default: the recipe's)")
    parser.add_argument("--resize", choices=("letterbox", "stretch"), help="default: the recipe's")
    parser.add_argument("--evaluate-every", type=cli.positive, metavar="EPOCHS", help="default: the recipe's")
    parser.add_argument("--seed", type=int, help="default: the recipe's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (default: 1)")
    parser.add_argument("--full-precision", action="store_true", help="compute in float32 instead of bfloat16")
    parser.add_argument("--strict", action="store_true", help="fail on the first picture that cannot be read")
    return parser.parse_args(arguments)


def configure(options: argparse.Namespace) -> TrainConfig:
    """The recipe with what the command line changes."""
    changes = {name: getattr(options, name) for name in _OVERRIDES if getattr(options, name) is not None}
    config = recipe(options.recipe)
    if "size" in changes:
        ratio = changes["size"] / config.size
        changes["sizes"] = tuple(sorted({max(round(side * ratio / 32), 1) * 32 for side in config.sizes}))
    return config.replace(**changes)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    if options.list:
        for name, make in RECIPES.items():
            print(f"{name:32} {(make.__doc__ or '').splitlines()[0]}")
        return 0
    if options.data is None:
        raise InputError("no dataset given; add --data FOLDER")
    resume = None
    if options.resume:
        given = [name for name in (*_OVERRIDES, "output") if getattr(options, name) is not None]
        if given:
            raise InputError(f"--resume continues a run as it was begun; leave out --{given[0].replace('_', '-')}")
        folder = options.resume
        resume = checkpoint.load(folder / "last.pt")
        config = resume.config
    else:
        config = configure(options)
        folder = options.output or Path("runs") / config.recipe
        if (folder / "last.pt").exists() and not options.overwrite:
            raise InputError(
                f"{folder} already holds a run; continue it with --resume {folder}, or use --overwrite or another --output"
            )
    run = RunOptions(
        data=options.data,
        output=folder,
        train_split=options.train_split,
        val_split=options.val_split,
        device=options.device,
        workers=options.workers,
        half=not options.full_precision,
        strict=options.strict,
    )
    try:
        best = train(config, run, resume)
    except KeyboardInterrupt:
        log.warning("stopped; continue with: python -m train --data %s --resume %s", options.data, folder)
        raise
    print(best)
    return 0


if __name__ == "__main__":
    cli.run(main)
