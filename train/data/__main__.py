"""Command line `python -m train.data`: examines a dataset before hours are spent on it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from runtime import cli
from runtime.datasets.dataset import Dataset
from runtime.datasets.doctor import Finding, examine, examine_leakage, examine_unlisted
from runtime.datasets.options import add_data_options, open_split
from runtime.datasets.summary import require_objects, summarize
from runtime.detections import Detections
from runtime.errors import CheckFailed, InputError
from runtime.files import check_writable
from runtime.media.image import write_image
from runtime.ops.image import Image
from runtime.viz.annotate import draw
from train.config import TrainConfig
from train.data.augment import AugmentConfig
from train.data.epoch import SampleIndex
from train.data.training_set import TrainingSet
from train.run_log import tile
from train.spec import model_spec

log = logging.getLogger("train.data")

_TRAIN_ON, _MEASURE_BY = "train on", "measure by"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "train.data",
        "Examine a dataset: what is in its splits, what is left out and why, broken images, doubled labels, images in both\n"
        "splits. Exit 2 if it cannot be trained on, 1 with --strict if there is anything to correct.",
        "python -m train.data --data datasets/mine --strict --show 8",
    )
    add_data_options(parser)
    parser.add_argument("--train-split", default="train", help="split to train on (default: the one that plays `train`)")
    parser.add_argument("--val-split", default="val", help="split to evaluate on (default: the one that plays `val`)")
    parser.add_argument("--size", type=cli.image_side, default=TrainConfig.size, help="input side (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="fail if anything is to be corrected, for CI")
    parser.add_argument("--show", type=cli.positive, metavar="N", help="draw N labeled images, each beside an augmented sample")
    parser.add_argument("--output", type=Path, default=Path("runs/samples.jpg"), help="image of --show (default: %(default)s)")
    return parser.parse_args(arguments)


def draw_samples(dataset: Dataset, count: int, size: int) -> Image:
    """Draws readable images of the split with their labels, each beside an augmented sample as training sees it.

    Raises:
        InputError: no image can be read.
    """
    config = TrainConfig(recipe="samples")
    training_set = TrainingSet(dataset, model_spec(config, dataset.class_names), AugmentConfig(), seed=0)
    drawn: list[Image] = []
    for index in dict.fromkeys(np.linspace(0, len(dataset) - 1, count).astype(int).tolist()):
        entry = dataset.images[index]
        try:
            image = entry.read()
        except InputError:  # the report names it
            continue
        sample, _ = training_set.sample(SampleIndex(0, index, index, (size, size), False), {})
        for pixels, boxes, ids in ((image, entry.boxes, entry.class_ids), (sample.image, sample.boxes, sample.class_ids)):
            found = Detections.from_arrays(boxes, np.ones(len(boxes)), ids)
            drawn.append(draw(np.ascontiguousarray(pixels), found, dataset.class_names, with_scores=False))
    if not drawn:
        raise InputError(f"{dataset.root}: none of {count} images of {dataset.split} can be read")
    return tile(drawn)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.show:
        cli.check_suffix(options.output, ".jpg")
        check_writable(options.output)
    quiet = logging.getLogger("runtime.datasets.build")
    quiet.setLevel(logging.ERROR)  # what reading left out is in the report
    splits = {purpose: open_split(options, name) for purpose, name in _purposes(options)}
    findings: list[Finding] = []
    for purpose, dataset in splits.items():
        print(summarize(dataset)[0], flush=True)
        findings += examine(dataset, options.size, AugmentConfig().min_side if purpose == _TRAIN_ON else 0)
    findings += [*examine_leakage(*splits.values()), *examine_unlisted(list(splits.values()))]
    faults = [item for item in findings if item.is_fault]
    for item in sorted(findings, key=lambda item: not item.is_fault):
        print(f"{'to correct' if item.is_fault else 'note'}: {item.text}")
    print(f"{options.data}: {len(faults)} things to correct" if faults else f"{options.data}: nothing to correct")
    if options.show:
        write_image(options.output, draw_samples(next(iter(splits.values())), options.show, options.size))
        log.info("drawn: %s", options.output)
    for purpose, dataset in splits.items():
        require_objects(dataset, purpose)
    if faults and options.strict:
        raise CheckFailed(f"{options.data}: {len(faults)} things to correct, the first: {faults[0].text}")
    return 0


def _purposes(options: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    return (_TRAIN_ON, options.train_split), (_MEASURE_BY, options.val_split)


if __name__ == "__main__":
    cli.run(main)
