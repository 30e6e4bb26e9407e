"""Command line `python -m runtime.evaluate`: measures the COCO accuracy of an exported model."""

from __future__ import annotations

import argparse
import json
from typing import Optional

from runtime import cli
from runtime.backends.base import Backend
from runtime.backends.open import open_backend
from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.evaluation.coco import METRICS, Evaluation, evaluate
from runtime.files import check_writable, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that every evaluating command takes."""
    parser.add_argument("--data", required=True, help="dataset folder, COCO or VOC layout")
    parser.add_argument("--split", default="val", help="split to score (default: the one that plays `val`)")
    parser.add_argument("--batch", type=cli.positive, default=1, help="images at a time (default: 1)")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    parser.add_argument("--coco-results", metavar="FILE", help="write detections as a COCO results file")
    parser.add_argument("--strict", action="store_true", help="fail on the first image that cannot be read")


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = cli.parser(
        "runtime.evaluate",
        "Measure the COCO accuracy of an exported model: the 12 COCO metrics and AP per class.",
        "python -m runtime.evaluate --engine model.onnx --data datasets/coco --split val2017",
    )
    cli.add_model(parser)
    add_arguments(parser)
    return parser.parse_args(arguments)


def measure(backend: Backend, options: argparse.Namespace) -> Evaluation:
    """Scores a model on the split that the options name, at the thresholds of its own spec."""
    dataset = open_dataset(options.data, options.split)
    if options.coco_results:
        check_writable(options.coco_results)  # now rather than after the work
    detector = Detector(backend, score_threshold=backend.spec.score_threshold)
    return evaluate(detector, dataset, backend.spec.class_names, batch=options.batch, strict=options.strict)


def report(result: Evaluation, options: argparse.Namespace) -> None:
    """Prints the metrics, and writes the results file if one was asked for."""
    if options.coco_results:
        write_json(options.coco_results, result.results)
    print(json.dumps(result.to_dict(), indent=1) if options.json else table(result))


def table(result: Evaluation) -> str:
    """Formats the metrics in percent; a dash where the split has no such object."""
    lines = [f"{name:6} {_percent(result.metrics[name])}" for name in METRICS]
    width = max(map(len, result.per_class))
    lines += ["", f"{'class':{width}}     AP"]
    lines += [f"{name:{width}} {_percent(value)}" for name, value in result.per_class.items()]
    note = f", {len(result.skipped)} skipped" if result.skipped else ""
    return "\n".join([*lines, "", f"{result.images} images{note}, {len(result.results)} detections"])


def _percent(value: float) -> str:
    return f"{value * 100:6.2f}" if value >= 0 else "     -"


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    with open_backend(options.engine, options.backend) as backend:
        report(measure(backend, options), options)
    return 0


if __name__ == "__main__":
    cli.run(main)
