"""Trains a recipe with every way to fuse the feature levels, all else equal, from several seeds, and compares their AP.

Runs that are already in the output folder are read, not repeated; one that was stopped goes on.

Example: `python -m benchmarks.fusion --data datasets/bccd --epochs 20 --seeds none=3 asff=3 sum=1 concat=1`
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from runtime import cli
from train.config import FUSIONS
from train.loop import train
from train.overrides import with_epochs, with_size
from train.recipes import recipe
from train.run.folder import METRICS, find_checkpoint
from train.run.options import RunOptions
from train.run_log import read_metrics


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser("benchmarks.fusion", __doc__ or "", "python -m benchmarks.fusion --data datasets/bccd --epochs 20")
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--recipe", default="yolov3-asff-small", help="default: yolov3-asff-small")
    parser.add_argument("--size", type=cli.image_side, default=256, help="input side (default: 256)")
    parser.add_argument("--epochs", type=cli.positive, default=20, help="of each run (default: 20)")
    parser.add_argument(
        "--seeds",
        type=_seeds,
        nargs="+",
        default=[(fusion, 3) for fusion in FUSIONS],
        metavar="FUSION=N",
        help=f"runs of each of {', '.join(FUSIONS)} (default: 3)",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/fusion"), help="folder for the runs (default: runs/fusion)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--workers", type=cli.count, help="processes that prepare batches (default: by the cores)")
    return parser.parse_args(arguments)


def _seeds(text: str) -> tuple[str, int]:
    fusion, _, count = text.partition("=")
    if fusion not in FUSIONS:
        raise argparse.ArgumentTypeError(f"{fusion!r}, expected one of {', '.join(FUSIONS)}")
    return fusion, cli.positive(count)


def trained(given: argparse.Namespace, fusion: str, seed: int) -> float:
    """Trains one network, or goes on with it, and returns its AP on `val` after the last epoch, in percent."""
    folder = given.output / f"{fusion}-{seed}"
    config = with_epochs(with_size(recipe(given.recipe), given.size), given.epochs)
    model = dataclasses.replace(config.model, fusion=fusion)
    config = config.replace(model=model, seed=seed, evaluate_every=given.epochs)
    options = RunOptions(data=given.data, output=folder, device=given.device, workers=given.workers)
    train(config, options, find_checkpoint(folder))
    return 100 * float(read_metrics(folder / METRICS)[-1]["AP"])


def row(fusion: str, found: Sequence[float]) -> str:
    """Writes one line of the table: mean, spread (standard deviation) and the single values."""
    spread = f"{statistics.stdev(found):5.2f}" if len(found) > 1 else "    -"
    return f"{fusion:8} {statistics.mean(found):6.2f} {spread}  {' '.join(f'{value:.2f}' for value in found)}"


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    found = {fusion: [trained(given, fusion, seed) for seed in range(count)] for fusion, count in given.seeds}
    print(f"{'fusion':8} {'AP':>6} {'spread':>5}  of each seed")
    for fusion, values in found.items():
        print(row(fusion, values))
    return 0


if __name__ == "__main__":
    cli.run(main)
