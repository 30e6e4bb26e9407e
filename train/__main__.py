"""Command line `python -m train`: trains a detector."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path

from runtime import cli
from runtime.datasets import options as data_options
from runtime.datasets.options import add_data_options, made_split
from runtime.errors import InputError
from runtime.spec import RESIZE_MODES
from train import checkpoint
from train.config import PRECISIONS, TrainConfig
from train.loop import RunOptions, train
from train.model.complexity import complexity
from train.recipes import PAPER_AP, RECIPES, recipe

log = logging.getLogger("train")

_DEFAULT_RECIPE = "yolov3-asff"

_OVERRIDES = (
    *("size", "epochs", "batch", "learning_rate", "resize", "evaluate_every", "seed"),
    *("train_split", "val_split", "precision", "ema", "decay_all"),
)
_SPANS = ("warmup_epochs", "tail_epochs", "plain_epochs", "fixed_epochs")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the arguments; those that override the recipe are None unless given."""
    parser = cli.parser(
        "train",
        "Train a detector on a labeled dataset.",
        "python -m train --data datasets/bccd --recipe yolov3-asff-small --output runs/bccd\n"
        "  python -m train --data datasets/mine --init darknet53.conv.74\n"
        "  python -m train --data datasets/bccd --resume runs/bccd",
    )
    add_data_options(parser, "needed unless --list", required=False)
    parser.add_argument("--recipe", help="named variant (default: yolov3-asff); see --list")
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    parser.add_argument("--output", type=Path, help="run folder (default: runs/<recipe>)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in --output")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run from its folder")
    parser.add_argument(
        "--init", type=Path, metavar="FILE", help="weights to start from: a checkpoint, published ones, a backbone"
    )
    parser.add_argument("--train-split", help="split to train on (default: the one that plays `train`)")
    parser.add_argument("--val-split", help="split to evaluate on (default: the one that plays `val`)")
    parser.add_argument("--size", type=cli.image_side, help="input side, a multiple of 32 (default: the recipe's)")
    parser.add_argument("--epochs", type=cli.positive, help="default: the recipe's")
    parser.add_argument("--batch", type=cli.positive, help="images a step (default: the recipe's)")
    parser.add_argument("--learning-rate", type=float, help="peak rate (default: the recipe's)")
    parser.add_argument("--resize", choices=RESIZE_MODES, help="default: the recipe's")
    parser.add_argument("--evaluate-every", type=cli.positive, metavar="EPOCHS", help="default: the recipe's")
    parser.add_argument("--seed", type=cli.count, help="default: the recipe's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--workers", type=cli.count, help="processes that prepare batches (default: by the cores)")
    parser.add_argument("--precision", choices=PRECISIONS, help="auto: bf16 where the device has it, else fp32")
    parser.add_argument("--compile", action="store_true", help="compile the network: a slow start, then faster steps")
    parser.add_argument(
        "--ema",
        type=cli.share,
        nargs="?",
        const=0.9998,
        metavar="DECAY",
        help="evaluate and keep averaged weights",
    )
    parser.add_argument("--decay-all", action="store_true", default=None, help="weight decay on norms and biases too")
    parser.add_argument("--strict", action="store_true", help="fail on the first image that cannot be read")
    return parser.parse_args(arguments)


def configure(options: argparse.Namespace) -> TrainConfig:
    """Applies the command line's changes to the recipe."""
    changes = {name: getattr(options, name) for name in _OVERRIDES if getattr(options, name) is not None}
    config = recipe(options.recipe or _DEFAULT_RECIPE)
    if "size" in changes:
        ratio = changes["size"] / config.size
        changes["sizes"] = tuple(sorted({max(round(side * ratio / 32), 1) * 32 for side in config.sizes}))
    if "epochs" in changes:  # the schedule keeps its shape
        share = changes["epochs"] / config.epochs
        changes.update({span: round(getattr(config, span) * share) for span in _SPANS})
        changes["dropblock"] = tuple({round(start * share): sizes for start, sizes in config.dropblock}.items())
    return config.replace(**changes)


def print_recipes() -> None:
    """Prints a line for each recipe: size and cost with 80 classes, the paper's AP, a description."""
    print(f"{'recipe':30} {'params':>7} {'GFLOPs':>7} {'GFLOPs':>7}  {'AP in the paper':20}  what it is")
    print(f"{'':30} {'M':>7} {'at 416':>7} {'at 608':>7}")
    for name, make in RECIPES.items():
        cost = complexity(make().model, 80, (416, 608))
        operations = " ".join(f"{cost.operations[side] / 1e9:7.1f}" for side in (416, 608))
        summary = (make.__doc__ or "").splitlines()[0]
        print(f"{name:30} {cost.parameters / 1e6:7.1f} {operations}  {PAPER_AP.get(name, '-'):20}  {summary}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print_recipes()
        return 0
    if options.data is None:
        raise InputError("no dataset given; add --data FOLDER")
    resume = None
    if options.resume:
        given = [name for name in (*_OVERRIDES, "recipe", "output", "init") if getattr(options, name) is not None]
        if given or options.overwrite:
            name = (*given, "overwrite")[0].replace("_", "-")
            raise InputError(f"--resume continues a run as it was begun; leave out --{name}")
        folder = options.resume.parent if options.resume.is_file() else options.resume
        resume = checkpoint.load(folder / "last.pt")
        config = resume.config
    else:
        config = configure(options)
        folder = options.output or Path("runs") / config.recipe
        if any((folder / name).exists() for name in ("last.pt", "best.pt")) and not options.overwrite:
            raise InputError(
                f"{folder} already holds a run; continue it with --resume {folder}, or use --overwrite or another --output"
            )
    run = RunOptions(
        data=options.data,
        output=folder,
        init=options.init,
        device=options.device,
        workers=options.workers,
        compile_with="inductor" if options.compile else None,
        strict=options.strict,
        made_split=made_split(options, resume.spec if resume else None),
        follow_links=options.follow_links,
    )
    try:
        best = train(config, run, resume)
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", "train", *data_options.to_arguments(options), "--resume", str(folder)])
        log.warning("stopped; continue with: %s", command)
        raise
    print(best)
    return 0


if __name__ == "__main__":
    cli.run(main)
