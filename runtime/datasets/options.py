"""Defines the command-line options that name a dataset, and opens its splits by them, the same way in every command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional

from runtime.datasets.dataset import Dataset, MadeSplit
from runtime.datasets.open import open_dataset
from runtime.errors import InputError
from runtime.spec import ModelSpec


def add_data_options(parser: argparse.ArgumentParser, use: str = "", required: bool = True) -> None:
    """Adds `--data` and how to read it.

    Args:
        parser: of the command.
        use: what the command does with the data, for its help.
        required: the command cannot do without.
    """
    layouts = "dataset folder: COCO, VOC, YOLO or an export of Roboflow, CVAT or Label Studio"
    parser.add_argument("--data", type=Path, required=required, help=f"{layouts}{f'; {use}' if use else ''}")
    parser.add_argument(
        "--val-share",
        type=_part,
        metavar="SHARE",
        help="share of the images to hold back as `val` where the data has none (default: what the model was trained with, else"
        f" {MadeSplit().share})",
    )
    parser.add_argument(
        "--split-seed", type=_seed, metavar="SEED", help="of that choice (default: what the model was trained with, else 0)"
    )
    parser.add_argument("--follow-links", action="store_true", help="read files to which symbolic links lead out of --data")


def made_split(options: argparse.Namespace, spec: Optional[ModelSpec] = None) -> Optional[MadeSplit]:
    """Returns how data without validation images is divided: as for the model's training, else as the options say, if they do.

    Args:
        options: those of `add_data_options`.
        spec: of the model that is to be scored or quantized; None before there is one.

    Raises:
        InputError: the options contradict the model.
    """
    given = {"share": options.val_share, "seed": options.split_seed}
    chosen = {name: value for name, value in given.items() if value is not None}
    if spec is None or spec.made_split is None:
        return MadeSplit(**chosen) if chosen else None
    trained = MadeSplit(*spec.made_split)
    for name, option in (("share", "--val-share"), ("seed", "--split-seed")):
        if name in chosen and chosen[name] != getattr(trained, name):
            raise InputError(
                f"{option} {chosen[name]:g}: the model was trained with {getattr(trained, name):g}, and would be scored on"
                f" images that it was trained on; leave out {option}"
            )
    return trained


def open_split(options: argparse.Namespace, split: str, spec: Optional[ModelSpec] = None) -> Dataset:
    """Opens a split of the dataset that the options name; see `open_dataset` and `made_split` for errors."""
    return open_dataset(options.data, split, made_split(options, spec), options.follow_links)


def to_arguments(options: argparse.Namespace) -> list[str]:
    """Returns the options as command-line arguments, for another command."""
    arguments = ["--data", str(options.data)]
    arguments += [] if options.val_share is None else ["--val-share", str(options.val_share)]
    arguments += [] if options.split_seed is None else ["--split-seed", str(options.split_seed)]
    return arguments + (["--follow-links"] if options.follow_links else [])


def _part(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text}")
    return value
