"""Command line `python -m runtime.evaluate`: measures the COCO accuracy of an exported model."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from runtime import cli
from runtime.backends.base import Backend
from runtime.backends.open import open_backend
from runtime.datasets.dataset import Dataset
from runtime.datasets.options import add_data_options, open_split
from runtime.datasets.summary import log_summary
from runtime.detector import Detector
from runtime.errors import CheckFailed, DetectorError, InputError
from runtime.evaluation.coco import METRICS, Evaluation, evaluate, match_classes
from runtime.evaluation.confusion import confusion_matrix
from runtime.evaluation.operating_point import IOU, Curve, OperatingPoint, Point, choose, measure_curves
from runtime.evaluation.store import check_storable, store_threshold
from runtime.files import check_writable, output_folder, write_json
from runtime.viz.plot_files import write_plots

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that every evaluating command takes."""
    add_data_options(parser)
    parser.add_argument("--split", default="val", help="split to score (default: the one that plays `val`)")
    parser.add_argument("--batch", type=cli.positive, default=1, help="images at a time (default: 1)")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    parser.add_argument("--coco-results", metavar="FILE", help="write detections as a COCO results file")
    parser.add_argument(
        "--precision",
        type=cli.share,
        metavar="P",
        help="choose the lowest score threshold with this precision, in (0, 1] (default: the threshold of best F1)",
    )
    parser.add_argument(
        "--store", action="store_true", help="store that threshold in the model's file; detection starts from it"
    )
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="plot precision against recall, F1 against the threshold, and the confusion matrix at that threshold",
    )
    parser.add_argument("--strict", action="store_true", help="fail on the first image that cannot be read")


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = cli.parser(
        "runtime.evaluate",
        "Measure the COCO accuracy of an exported model: the 12 COCO metrics, AP per class, and the score threshold to detect"
        " with.",
        "python -m runtime.evaluate --engine model.onnx --data datasets/coco --split val2017",
    )
    cli.add_model(parser)
    add_arguments(parser)
    return parser.parse_args(arguments)


def run(backend: Backend, options: argparse.Namespace, store: Callable[[float, Curve], None]) -> None:
    """Scores a model on the split that the options name, at the thresholds of its own spec, and reports what was found.

    Args:
        backend: runs the model.
        options: those of `add_arguments`.
        store: stores an operating threshold, and the curve that it was chosen on, in the model's file.

    Raises:
        InputError: the data or an output cannot be used, or there is nothing to choose a threshold by.
        CheckFailed: no threshold has the wanted precision, or no detection is right.
    """
    dataset = open_split(options, options.split, backend.spec)
    needs_threshold = options.store or options.plots or options.precision is not None
    if needs_threshold and dataset.truth.crowd.all():
        raise _nothing_to_measure_by(dataset)
    if options.coco_results:
        check_writable(options.coco_results)  # now rather than after the work
    if options.plots:
        output_folder(options.plots)
    match_classes(backend.spec.class_names, dataset)
    log_summary(dataset)
    detector = Detector(backend, score_threshold=backend.spec.score_threshold)
    result = evaluate(detector, dataset, backend.spec.class_names, batch=options.batch, strict=options.strict)
    curves = measure_curves(result.matches)
    chosen = choose(curves, options.precision)
    if needs_threshold and chosen.threshold is None:
        raise _no_threshold(curves.overall, dataset, options.precision)
    own = backend.spec.operating_threshold
    stored = None if own is None else curves.overall.at(own)
    if options.coco_results:
        write_json(options.coco_results, dataset.to_source(result.results))
    if options.plots and chosen.threshold is not None:
        counts = confusion_matrix(dataset, result.results, result.matches.image_ids, chosen.threshold)
        write_plots(options.plots, curves, chosen, counts, dataset.class_names)
        log.info("the plots are in %s", options.plots)
    if options.store and chosen.threshold is not None:
        store(chosen.threshold, curves.overall)
    print(json.dumps(_as_json(result, chosen, stored), indent=1) if options.json else table(result, chosen, stored))


def _nothing_to_measure_by(dataset: Dataset) -> InputError:
    return InputError(f"{dataset.root}: split {dataset.split!r} has no object to measure by; choose another --split")


def _no_threshold(curve: Curve, dataset: Dataset, precision: Optional[float]) -> DetectorError:
    """Returns the error that says why no threshold could be chosen."""
    if not curve.objects:
        return _nothing_to_measure_by(dataset)
    best = curve.best_precision()
    if best is None or precision is None:
        return CheckFailed(
            f"no detection on {dataset.split} is right, so there is no threshold to choose; use a trained model, and a split"
            " with the objects it was trained on"
        )
    return CheckFailed(
        f"no threshold has a precision of {precision:g} on {dataset.split}: the highest is {_rounded_down(best.precision)},"
        f" at {best.threshold:.8g} with a recall of {best.recall:.3g}; ask for less"
    )


def _rounded_down(value: float) -> str:
    """Formats a share with 4 digits, never as more than it is."""
    return f"{math.floor(value * 1e4) / 1e4:g}"


def _as_json(result: Evaluation, chosen: OperatingPoint, stored: Optional[Point]) -> dict[str, object]:
    at_stored = stored.to_dict() if stored else None
    return {**result.to_dict(), "operating_point": {**chosen.to_dict(), "stored": at_stored}}


def table(result: Evaluation, chosen: OperatingPoint, stored: Optional[Point] = None) -> str:
    """Formats the metrics in percent; a dash where the split has no such object.

    Args:
        result: the evaluation.
        chosen: its operating point.
        stored: the point of the threshold that the model's file stores; None if it stores none.
    """
    lines = [f"{name:6} {_percent(result.metrics[name])}" for name in METRICS]
    width = max(map(len, result.per_class))
    lines += ["", f"{'class':{width}}     AP"]
    lines += [f"{name:{width}} {_percent(value)}" for name, value in result.per_class.items()]
    lines += ["", *_operating_point(chosen)]
    if stored:
        figures = ", ".join(f"{name} {_share(getattr(stored, name)).strip()}" for name in ("precision", "recall"))
        lines.append(f"at {stored.threshold:.8g}, which the model stores: {figures}, F1 {_share(stored.f1).strip()}")
    note = f", {len(result.skipped)} skipped" if result.skipped else ""
    return "\n".join([*lines, "", f"{result.images} images{note}, {len(result.results)} detections"])


def _operating_point(chosen: OperatingPoint) -> list[str]:
    """Formats the threshold, and precision, recall and F1 of all classes and of each at it."""
    if chosen.overall is None:
        return [f"operating point ({chosen.rule}): –, no detection is right"]
    rows = [("all", chosen.overall, chosen.overall), *((name, at, chosen.own[name]) for name, at in chosen.per_class.items())]
    width = max(len("class"), *(len(name) for name, _, _ in rows))
    lines = [f"operating point ({chosen.rule}): score >= {chosen.threshold:.8g}, right at IoU {IOU:g}"]
    lines.append(f"{'class':{width}} objects  precision  recall      F1  threshold for it alone")
    for name, at, own in rows:
        alone = f"{own.threshold:.8g}" if own else "–"
        lines.append(f"{name:{width}} {at.objects:7}  {_share(at.precision):>9}  {_share(at.recall)}  {_share(at.f1)}  {alone}")
    return lines


def _share(value: float) -> str:
    return f"{'–':>6}" if math.isnan(value) else f"{value * 100:6.2f}"


def _percent(value: float) -> str:
    return f"{value * 100:6.2f}" if value >= 0 else f"{'–':>6}"


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    with open_backend(options.engine, options.backend) as backend:
        if options.store:
            check_storable(options.engine)
        run(backend, options, lambda threshold, curve: store_threshold(Path(options.engine), threshold, curve))
    return 0


if __name__ == "__main__":
    cli.run(main)
