"""`python -m export.verify`: runs the accuracy gate, compares two files layer by layer, or checks a manifest."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from calibration.budget import UNDECIDED
from export.accuracy import layer_diff, limits
from export.accuracy.consumers import CONSUMERS
from export.accuracy.gate import Outcome, Verification, verify
from export.accuracy.measure import table
from export.report import write_report
from export.report.markdown import render_comment
from export.report.summary import MARKS
from runtime import cli
from runtime.datasets.options import add_data_options, open_split
from runtime.datasets.summary import require_objects
from runtime.errors import CheckFailed, InputError
from runtime.files import output_folder, read_text
from runtime.manifest import find_changes
from runtime.media.image import read_image
from train.weights import open_weights

log = logging.getLogger("verify")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "export.verify",
        "Score the weights in PyTorch and every file made from them by one evaluation. A file passes if ΔAP is shown to be\n"
        "within its budget; exit 1 if it is shown not to be, or if the images are too few to tell. With --bisect, find the\n"
        "first layer at which two files differ. With --manifest, tell whether a file was changed since it was made.",
        "python -m export.verify --weights best.pt --data datasets/coco --split val2017 best.onnx best.fp16.onnx\n"
        "  python -m export.verify --bisect --image street.jpg best.onnx best.int8.onnx\n"
        "  python -m export.verify --manifest best.onnx.json",
    )
    parser.add_argument("files", nargs="*", type=cli.model_file, metavar="FILE", help=".onnx files and .engine files")
    parser.add_argument("--weights", type=Path, help="what the files were made from")
    add_data_options(parser, required=False)
    parser.add_argument("--split", default="val", help="split to score (default: the one that plays `val`)")
    limits.add_arguments(parser)
    parser.add_argument(
        "--consumer",
        choices=tuple(CONSUMERS),
        action="append",
        default=[],
        help="measure too what AP is left if this program prepares the images; may be repeated",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/verify"), help="for the report (default: runs/verify)")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="report.json on stdout instead of the table")
    shown.add_argument("--markdown", action="store_true", help="the verdict as Markdown on stdout, for a pull request")
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
    dataset = open_split(options, options.split, open_weights(options.weights).spec)
    require_objects(dataset, "measure by")
    found = verify(options.weights, options.files, dataset, limits.read_limits(options), tuple(dict.fromkeys(options.consumer)))
    page = write_report(folder, found)
    if options.json or options.markdown:
        text = read_text(folder / "report.json").strip()
        print(text if options.json else render_comment(json.loads(text)).strip())
    else:
        print(summary(found))
    log.info("report: %s", page)
    return 0 if found.passed else CheckFailed.exit_code


def summary(found: Verification) -> str:
    """Formats the table and the verdict on each file."""
    bounds = {item.name: item.criteria[0].bounds for item in found.outcomes if item.criteria and item.criteria[0].bounds}
    measurements = [found.reference]
    for outcome in found.outcomes:
        measurements += [outcome.measurement] if outcome.measurement else []
        measurements += [item.measurement for item in outcome.consumers]
        bounds.update({item.measurement.name: item.bounds for item in outcome.consumers})
    lines = [table(measurements, bounds), ""]
    for outcome in found.outcomes:
        lines.append(
            f"{MARKS[outcome.status]} {outcome.name}: {'; '.join((outcome.status, *(outcome.reasons or _evidence(outcome))))}"
        )
        lines += [f"  note: {note}" for note in outcome.notes]
    undecided = any(outcome.status == UNDECIDED for outcome in found.outcomes)
    if undecided and not found.limits.accept_undecided:
        lines += ["", "undecided: score on more images, allow more (--max-ap-drop), or accept it (--accept-undecided)"]
    return "\n".join(lines)


def _evidence(outcome: Outcome) -> list[str]:
    """Says what a pass rests on."""
    if not outcome.criteria or outcome.criteria[0].bounds is None:
        return []
    bounds, budget = outcome.criteria[0].bounds, outcome.criteria[0].budget
    return [f"ΔAP is above {bounds.lower:+.3f} with {bounds.confidence:.0%} confidence, the budget is {budget:g}"]


if __name__ == "__main__":
    cli.run(main)
