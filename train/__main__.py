"""Command line `python -m train`: trains a detector."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from pathlib import Path

from runtime import cli
from runtime.datasets.options import add_data_options, made_split
from runtime.errors import InputError
from runtime.spec import RESIZE_MODES
from train.checkpoint import Checkpoint
from train.config import PRECISIONS, TrainConfig
from train.distributed import World, joined
from train.dry_run import describe
from train.loop import train
from train.model.complexity import complexity
from train.overrides import anchor, parts, with_anchors, with_epochs, with_size
from train.recipes import PAPER_AP, RECIPES, recipe
from train.run.folder import LAST, find_checkpoint, holds_run
from train.run.options import RunOptions
from train.run.prepare import prepare

log = logging.getLogger("train")

_DEFAULT_RECIPE = "yolov3-asff"
_FROM_OUTPUT = Path("\0")
"""Value of `--resume` without a folder; no folder has this name."""

_OVERRIDES = (
    *("size", "epochs", "batch", "learning_rate", "resize", "evaluate_every", "seed"),
    *("train_split", "val_split", "precision", "ema", "decay_all", "anchors", "freeze", "part_rates", "patience"),
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the arguments; those that override the recipe are None unless given."""
    parser = cli.parser(
        "train",
        "Train a detector on a labeled dataset.",
        "python -m train --data datasets/bccd --recipe yolov3-asff-small --output runs/bccd\n"
        "  python -m train --data datasets/mine --init darknet53.conv.74\n"
        "  python -m train --data datasets/bccd --resume runs/bccd\n"
        "  torchrun --nproc-per-node 8 -m train --data datasets/coco --output runs/coco --resume",
    )
    add_data_options(parser, "needed unless --list", required=False)
    parser.add_argument("--recipe", help="named variant (default: yolov3-asff); see --list")
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    parser.add_argument("--output", type=Path, help="run folder (default: runs/<recipe>)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in --output")
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=_FROM_OUTPUT,
        metavar="RUN",
        help="continue an interrupted run from its folder; without RUN, continue the one in --output, or start it there",
    )
    parser.add_argument(
        "--init", type=Path, metavar="FILE", help="weights to start from: a checkpoint, published ones, a backbone"
    )
    parser.add_argument("--train-split", help="split to train on (default: the one that plays `train`)")
    parser.add_argument("--val-split", help="split to evaluate on (default: the one that plays `val`)")
    parser.add_argument("--size", type=cli.image_side, help="input side, a multiple of 32 (default: the recipe's)")
    parser.add_argument("--epochs", type=cli.positive, help="default: the recipe's")
    parser.add_argument("--batch", type=cli.positive, help="images a step, on all devices together (default: the recipe's)")
    parser.add_argument(
        "--device-batch",
        type=cli.positive,
        metavar="N",
        help="images that a device computes at a time, where its share of the batch does not fit (default: its share)",
    )
    parser.add_argument("--learning-rate", type=float, help="peak rate (default: the recipe's)")
    parser.add_argument("--resize", choices=RESIZE_MODES, help="default: the recipe's")
    parser.add_argument("--evaluate-every", type=cli.positive, metavar="EPOCHS", help="default: the recipe's")
    parser.add_argument("--seed", type=cli.count, help="default: the recipe's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument(
        "--save-every",
        type=_interval,
        nargs="+",
        metavar="N",
        default=[],
        help="checkpoints within an epoch: after so many steps (500), minutes (10min), or both (default: 15min)",
    )
    parser.add_argument(
        "--keep", type=cli.positive, default=2, metavar="N", help="checkpoints kept to continue from (default: 2)"
    )
    parser.add_argument(
        "--log-every", type=cli.positive, default=20, metavar="N", help="steps between rows of steps.csv (default: 20)"
    )
    parser.add_argument("--workers", type=cli.count, help="processes that prepare batches (default: by the cores)")
    _add_training(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be trained, and the memory it takes, draw the first batch beside --output, and stop",
    )
    parser.add_argument("--strict", action="store_true", help="fail on the first image that cannot be read")
    return parser.parse_args(arguments)


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Adds the options of numbers, averaging, anchors and fine-tuning."""
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
    parser.add_argument(
        "--anchors",
        type=anchor,
        nargs="+",
        metavar="W,H",
        help="of the base boxes in pixels at --size, small to large; or auto: fitted to the training images (default: the"
        " recipe's, scaled to --size)",
    )
    parser.add_argument(
        "--freeze",
        type=parts(":", cli.positive, 0),
        metavar="PARTS",
        help="parts that keep the weights they start with, such as backbone,neck:5: the neck for 5 epochs",
    )
    parser.add_argument(
        "--part-rates",
        type=parts("=", cli.positive_number),
        metavar="PARTS",
        help="factors on the learning rate, such as backbone=0.1,neck=0.5",
    )
    parser.add_argument(
        "--patience",
        type=cli.positive,
        metavar="N",
        help="end after N evaluations in a row that, by their interval, gained nothing worth having (default: never)",
    )


def _interval(text: str) -> tuple[str, float]:
    """Parses steps (`500`) or minutes (`10min`) to (field of `RunOptions`, number)."""
    if text.endswith("min"):
        return "save_minutes", cli.positive_number(text.removesuffix("min"))
    return "save_steps", cli.positive(text)


def configure(options: argparse.Namespace) -> TrainConfig:
    """Applies the command line's changes to the recipe."""
    changes = {name: getattr(options, name) for name in _OVERRIDES if getattr(options, name) is not None}
    config = recipe(options.recipe or _DEFAULT_RECIPE)
    if "size" in changes:
        config = with_size(config, changes.pop("size"))
    if "epochs" in changes:
        config = with_epochs(config, changes.pop("epochs"))
    if "anchors" in changes:
        config = with_anchors(config, changes.pop("anchors"))
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
    with joined(options.device) as world:
        best = _train(options, world, sys.argv[1:] if arguments is None else arguments)
        if world.is_main:
            print(best)
    return 0


def _train(options: argparse.Namespace, world: World, given: list[str]) -> Path:
    """Starts or continues a run as the options say, as which `given` was read.

    Returns:
        The path of its best checkpoint, or of a dry run's image.
    """
    folder, resume = world.from_main(lambda: _find_run(options))
    config = resume.config if resume and not _is_configured(options) else configure(options)
    intervals = dict(options.save_every)
    if "save_steps" in intervals:
        intervals.setdefault("save_minutes", math.inf)
    run = RunOptions(
        data=options.data,
        output=folder,
        init=options.init,
        device=options.device,
        device_batch=options.device_batch,
        workers=options.workers,
        keep=options.keep,
        log_every=options.log_every,
        compile_with="inductor" if options.compile else None,
        strict=options.strict,
        made_split=made_split(options, resume.spec if resume else None),
        follow_links=options.follow_links,
        **intervals,
    )
    if options.dry_run:
        return _dry_run(config, run, resume, world)
    try:
        return train(config, run, resume, world)
    except KeyboardInterrupt:
        launcher = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1")] if world.size > 1 else ["python"]
        same = [argument for argument in given if argument != "--overwrite"]
        command = [*launcher, "-m", "train", *same, *([] if options.resume else ["--resume"])]
        cli.log_command(log, logging.WARNING, "stopped; continue with:", command)
        raise


def _dry_run(config: TrainConfig, options: RunOptions, resume: Checkpoint | None, world: World) -> Path:
    """Says what a run would be; returns the image of its first batch."""
    if world.size > 1:
        raise InputError("--dry-run: expected one process; run it without torchrun")
    folder = options.output.resolve()
    image_path = folder.parent / f"{folder.name}-first-batch.jpg"
    for line in describe(prepare(config, options, resume, world), image_path):
        log.info("%s", line)
    log.info("nothing was trained; the same command without --dry-run starts it")
    return image_path


def _is_configured(options: argparse.Namespace) -> bool:
    return any(getattr(options, name) is not None for name in (*_OVERRIDES, "recipe"))


def _find_run(options: argparse.Namespace) -> tuple[Path, Checkpoint | None]:
    """Returns the run's folder, and the checkpoint to continue from if there is one.

    Raises:
        InputError: options that exclude each other, no run to continue, or one that would be replaced.
    """
    if options.resume in (None, _FROM_OUTPUT):
        folder = options.output or Path("runs") / recipe(options.recipe or _DEFAULT_RECIPE).recipe
        if options.resume and options.overwrite:
            raise InputError("--resume continues a run; leave out --overwrite")
        if options.resume:
            return folder, find_checkpoint(folder)
        if holds_run(folder) and not options.overwrite:
            raise InputError(
                f"{folder} already holds a run; continue it with --resume {folder}, or use --overwrite or another --output"
            )
        return folder, None
    given = [name for name in (*_OVERRIDES, "recipe", "output", "init") if getattr(options, name) is not None]
    if given or options.overwrite:
        name = (*given, "overwrite")[0].replace("_", "-")
        raise InputError(f"--resume continues a run as it was begun; leave out --{name}")
    if options.resume.is_file() and options.resume.name != LAST:
        raise InputError(
            f"{options.resume}: a run continues from its {LAST}; name its folder, or start a new run from this file with --init"
        )
    folder = options.resume.parent if options.resume.is_file() else options.resume
    found = find_checkpoint(folder)
    if not found:
        raise InputError(f"{folder / LAST}: no such checkpoint")
    return folder, found


if __name__ == "__main__":
    cli.run(main)
