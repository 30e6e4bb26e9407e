"""`python -m export.verify`: runs the accuracy gate, compares two files layer by layer, or checks a manifest."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from calibration.budget import BUDGETS
from export.accuracy import layer_diff
from export.accuracy.gate import FAILED, NOT_RUN, PASSED, Verification, parse_budgets, verify
from export.accuracy.measure import table
from export.report import write_report
from runtime import cli
from runtime.datasets.open import open_dataset
from runtime.errors import CheckFailed, InputError
from runtime.files import output_folder
from runtime.manifest import find_changes
from runtime.media.image import read_image

log = logging.getLogger("verify")

_MARKS = {PASSED: "✓", FAILED: "✗", NOT_RUN: "–"}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "export.verify",
        "Score the weights in PyTorch and every file made from them by one evaluation, and refuse (exit 1) a file that lost\n"
        "more AP than its budget. With --bisect, find the first layer at which two files differ. With --manifest, tell\n"
        "whether a file was changed since it was made.",
        "python -m export.verify --weights best.pt --data datasets/coco --split val2017 best.onnx best.fp16.onnx\n"
        "  python -m export.verify --bisect --image street.jpg best.onnx best.int8.onnx\n"
        "  python -m export.verify --manifest best.onnx.json",
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help=".onnx files and .engine files")
    parser.add_argument("--weights", type=Path, help="what the files were made from")
    parser.add_argument("--data", help="dataset folder, COCO or VOC layout")
    parser.add_argument("--split", default="val", help="split to score (default: the one that plays `val`)")
    budgets = ",".join(f"{name}={value:g}" for name, value in BUDGETS.items())
    parser.add_argument(
        "--max-ap-drop",
        type=_budgets,
        default=BUDGETS,
        metavar="POINTS",
        help=f"one for all, or by precision (default: {budgets})",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/verify"), help="for the report (default: runs/verify)")
    parser.add_argument("--json", action="store_true", help="report.json on stdout instead of the table")
    parser.add_argument("--bisect", action="store_true", help="compare two .onnx files layer by layer on --image")
    parser.add_argument("--image", type=Path, help="image for --bisect")
    parser.add_argument(
        "--threshold",
        type=float,
        default=layer_diff.THRESHOLD,
        help=f"of --bisect, relative (default: {layer_diff.THRESHOLD:g})",
    )
    parser.add_argument("--manifest", type=Path, metavar="FILE.json", help="check the exported file that it describes")
    return parser.parse_args(arguments)


def _budgets(text: str) -> dict[str, float]:
    try:
        return parse_budgets(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.manifest:
        return _check_manifest(options.manifest)
    return _bisect(options) if options.bisect else _verify(options)


def _check_manifest(path: Path) -> int:
    changes = find_changes(path)
    print("\n".join(changes) or f"{path}: unchanged")
    return CheckFailed.exit_code if changes else 0


def _bisect(options: argparse.Namespace) -> int:
    if len(options.files) != 2 or not options.image:
        raise InputError("--bisect: expected two .onnx files and --image IMAGE; see python -m export.verify --help")
    if not options.threshold >= 0:
        raise InputError(f"--threshold: expected a number of at least 0, got {options.threshold}")
    first, second = options.files
    layers = layer_diff.compare_layers(first, second, read_image(options.image))
    print(layer_diff.table(layers, options.threshold))
    return CheckFailed.exit_code if layer_diff.first_departure(layers, options.threshold) else 0


def _verify(options: argparse.Namespace) -> int:
    if not options.files or not options.weights or not options.data:
        raise InputError("expected --weights, --data and at least one file to verify; see python -m export.verify --help")
    if len({file.resolve() for file in options.files}) < len(options.files):
        raise InputError("a file is given twice; name each once")
    folder = output_folder(options.output)  # fail before the work
    found = verify(options.weights, options.files, open_dataset(options.data, options.split), options.max_ap_drop)
    page = write_report(folder, found)
    if options.json:
        print((folder / "report.json").read_text(encoding="utf-8").strip())
    else:
        print(summary(found))
    log.info("report: %s", page)
    return 0 if found.passed else CheckFailed.exit_code


def summary(found: Verification) -> str:
    """Formats the table and the verdict on each file."""
    lines = [table([found.reference, *(outcome.measurement for outcome in found.outcomes if outcome.measurement)]), ""]
    for outcome in found.outcomes:
        lines.append(f"{_MARKS[outcome.status]} {outcome.name}: {'; '.join((outcome.status, *outcome.reasons))}")
        lines += [f"  note: {note}" for note in outcome.notes]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
