"""Command line `python -m runtime.benchmark`: times each stage from an image file to detections, of one model or of two."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np

from runtime import cli
from runtime.backends.base import Backend
from runtime.backends.open import BACKENDS, open_backend
from runtime.benchmark import footprint, machine
from runtime.benchmark.clocks import watched
from runtime.benchmark.footprint import Footprint
from runtime.benchmark.images import open_images
from runtime.benchmark.load import Load, under_load
from runtime.benchmark.plot import plot
from runtime.benchmark.report import ModelFacts, Protocol, Report, compare, row, table
from runtime.benchmark.stages import BatchTiming, TimedBackend, run
from runtime.benchmark.timing import interleave
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.files import check_writable
from runtime.media.image import write_image

log = logging.getLogger(__name__)


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = cli.parser(
        "runtime.benchmark",
        "Time each stage from an image file to detections: load (read and decode the file), preprocess, copy (to a device\n"
        "and back), infer, decode, NMS. Of two models, which take turns, every ratio is of the same rounds.",
        "python -m runtime.benchmark --engine model.int8.onnx --compare model.onnx --batch 1,8,32 --plot times.png",
    )
    cli.add_model(parser)
    parser.add_argument("--compare", metavar="OTHER", help="a second model to alternate with; may be the same")
    parser.add_argument("--compare-backend", choices=BACKENDS, default="auto", help="what runs the second model")
    parser.add_argument("--batch", type=_batches, default=(1,), metavar="N,N,…", help="batch sizes (default: 1)")
    parser.add_argument("--source", help="an image, folder or glob pattern (default: made-up images of 640x480)")
    parser.add_argument("--conf", type=cli.probability, default=0.25, help="lowest score that reaches NMS (default: 0.25)")
    parser.add_argument("--repeats", type=cli.positive, default=50, help="rounds measured for each batch size (default: 50)")
    parser.add_argument("--warm-up", type=cli.count, default=5, help="rounds before those (default: 5)")
    parser.add_argument(
        "--threads", type=cli.positive, metavar="N", help="time inference in N threads at once too (latency under load)"
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON on stdout instead of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the stages as bars into an image")
    return parser.parse_args(arguments)


def _batches(text: str) -> tuple[int, ...]:
    """Parses comma-separated batch sizes, each once."""
    try:
        return tuple(dict.fromkeys(cli.positive(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected batch sizes with commas between them, got {text}") from error


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    if options.plot:
        cli.check_suffix(options.plot, ".png", option="--plot")
        check_writable(options.plot)  # now rather than after the work
    report = measure(options)
    print(json.dumps(asdict(report), indent=1) if options.json else table(report))
    if options.plot:
        write_image(options.plot, plot(report))
        log.info("the plot is %s", options.plot)
    return 0


@dataclass(frozen=True)
class _Model:
    """An opened model, the backend that was asked for, and the requested batch sizes that it takes."""

    letter: str
    file: str
    asked: str
    backend: Backend
    detector: Detector
    batches: tuple[int, ...]


def measure(options: argparse.Namespace) -> Report:
    """Measures everything that the options ask for.

    Raises:
        InputError: a file that cannot be used; a model takes none of the batch sizes.
    """
    here = machine.describe()  # before we are the load
    with contextlib.ExitStack() as opened:
        models = [_open(opened, "A", options.engine, options.backend, options)]
        if options.compare:
            models.append(_open(opened, "B", options.compare, options.compare_backend, options))
        files, images = opened.enter_context(open_images(options.source))
        rows, comparisons, loads = [], [], []
        clocks = opened.enter_context(watched())
        for batch in options.batch:
            able = [model for model in models if batch in model.batches]
            timings = _interleave(able, batch, files, options)
            rows += [row(letter, batch, found) for letter, found in timings.items()]
            if len(timings) == 2:
                comparisons.append(compare(batch, timings["A"], timings["B"]))
            if options.threads:
                loads += [_under_load(model, batch, options) for model in able]
    # With all models closed: memory that they hold, and a GPU's above all, may be needed again.
    facts = [_facts(model, footprint.measure(model.file, model.asked, model.batches)) for model in models]
    protocol = Protocol(options.warm_up, options.repeats, images, options.conf)
    return Report(here, protocol, facts, rows, comparisons, loads, clocks[0] if clocks else None)


def _under_load(model: _Model, batch: int, options: argparse.Namespace) -> Load:
    spec = model.backend.spec
    images = np.zeros((batch, *spec.input_shape), spec.input_type)
    return under_load(model.letter, model.backend, images, options.threads, options.repeats)


def _open(opened: contextlib.ExitStack, letter: str, file: str, asked: str, options: argparse.Namespace) -> _Model:
    backend = opened.enter_context(open_backend(file, asked))
    if isinstance(backend, TimedBackend):
        backend.compile_at_once()  # else kernels get better while they are timed
    only = backend.batch_size
    taken = tuple(batch for batch in options.batch if only in (None, batch))
    if not taken:
        raise InputError(f"{file}: takes batches of {only} alone; measure it with --batch {only}")
    if taken != options.batch:
        log.warning("%s takes batches of %d alone; other sizes are left out", file, only)
    return _Model(letter, file, asked, backend, Detector(backend, score_threshold=options.conf), taken)


def _interleave(
    models: Sequence[_Model], batch: int, files: Sequence[Path], options: argparse.Namespace
) -> dict[str, list[BatchTiming]]:
    """Times each model in turn, by its letter; all get the same images in a round, the following ones in the next."""

    def timing(model: _Model, turn: int) -> BatchTiming:
        return run(model.backend, model.detector, [files[(turn * batch + i) % len(files)] for i in range(batch)])

    ways = {model.letter: partial(timing, model) for model in models}
    return interleave(ways, options.repeats, options.warm_up, label=f"batch {batch}")


def _facts(model: _Model, found: Optional[Footprint]) -> ModelFacts:
    spec = model.backend.spec
    return ModelFacts(model.letter, model.file, spec.name, spec.precision, spec.input_size, model.backend.title, found)


if __name__ == "__main__":
    cli.run(main)
