"""Command line `python -m runtime.detect`: detects objects in images, videos, cameras and streams, and saves what it finds."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
from collections.abc import Sequence
from typing import Optional

from runtime import cli
from runtime.console.terminal import printable
from runtime.detection_run import DetectionRun, WindowClosed
from runtime.detector import Detector
from runtime.detector_options import DetectorOptions, add_detector
from runtime.errors import InputError
from runtime.media.live.address import LiveAddress, live_address
from runtime.media.sources import SkippedSources, Source, find_sources
from runtime.results.records import Record
from runtime.results.writer import KINDS, ResultWriter, open_results
from runtime.streaming.prefetch import close_generator
from runtime.streaming.statistics import RunStatistics
from runtime.viz.window import Window

log = logging.getLogger(__name__)

DEFAULT_OUTPUT = "runs/detect"
DEFAULT_SAVE = ("images", "video")
DEFAULT_TIMEOUT, DEFAULT_RETRY = 10.0, 60.0

_FOR_FILES = (("batch", None), ("recursive", False), ("strict", False))
_FOR_STREAMS = (("timeout", DEFAULT_TIMEOUT), ("retry", DEFAULT_RETRY))
"""Options that only one kind of source has, and their defaults."""


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = cli.parser(
        "runtime.detect",
        "Detect objects in images, videos, cameras and network streams.",
        "python -m runtime.detect --engine model.onnx --source photos/ --recursive --save images,csv --output found/",
    )
    cli.add_model(parser)
    _add_sources(parser)
    _add_results(parser)
    add_detector(parser)
    return parser.parse_args(arguments)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        required=True,
        help="image, video, folder or glob pattern (quoted); list of files (.txt, one a line); camera number (0) or stream"
        " (rtsp://…, http://…); or - for stdin, which may be an image or a list of files",
    )
    parser.add_argument("--recursive", action="store_true", help="read the folders in a folder too")
    parser.add_argument("--batch", type=cli.positive, help="images run together (default: the model's fixed batch size, or 1)")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read, or not to its end")
    parser.add_argument(
        "--timeout",
        type=cli.positive_number,
        default=DEFAULT_TIMEOUT,
        metavar="S",
        help=f"seconds without a frame after which a stream is connected again (default: {DEFAULT_TIMEOUT:g})",
    )
    parser.add_argument(
        "--retry",
        type=_duration,
        default=DEFAULT_RETRY,
        metavar="S",
        help=f"seconds without a frame after which a lost stream is given up; inf: never (default: {DEFAULT_RETRY:g})",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", help=f"folder for the results (default: {DEFAULT_OUTPUT}; with --json alone: none are written)"
    )
    parser.add_argument(
        "--save",
        type=_kinds,
        help=f"results to write, separated by commas: {', '.join(KINDS)} (default: images,video; none of a camera or stream"
        " without --output)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON line per image or frame on stdout")
    parser.add_argument("--resume", action="store_true", help="leave out files that have their results in --output")
    parser.add_argument("--show", action="store_true", help="show each image or frame in a window; any key goes on, q ends")


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(KINDS)}, separated by commas, got {kind!r}")
    return kinds


def _duration(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, or inf, got {text}")
    return value


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    live = live_address(options.source)
    output = _output(options, is_live=live is not None)
    kinds = options.save or DEFAULT_SAVE
    sources = _sources(options, live, output)
    chosen, statistics = DetectorOptions.of(options), RunStatistics()
    with contextlib.ExitStack() as stack:
        window = stack.enter_context(Window()) if options.show else None
        detector = stack.enter_context(_open_detector(chosen, statistics))
        skipped = stack.enter_context(SkippedSources(len(sources), strict=options.strict))
        settings = functools.partial(chosen.settings, detector.spec)
        names = detector.spec.class_names
        results = stack.enter_context(open_results(output, kinds, sources, names, settings=settings, resume=options.resume))
        run = DetectionRun(detector, results, statistics, window)
        if live is not None:
            records = run.live(live, sources[0], timeout=options.timeout, retry=options.retry)
        else:
            left = _unfinished(sources, results)
            records = run.files(left, skipped, batch=options.batch or detector.batch_size, strict=options.strict)
        try:
            with contextlib.suppress(WindowClosed), close_generator(records):
                for record in records:
                    print(json.dumps(record) if options.json else _summary(record), flush=options.json)
        finally:
            if live is not None and statistics.images:  # however it ended: most streams do by Ctrl-C
                log.info("%s", statistics.summary(detector.score_threshold, run.dropped))
    if output:
        log.info("%s are in %s", "annotated images" if kinds == DEFAULT_SAVE else "results", output)
    if live is None:
        log.info("%s", statistics.summary(detector.score_threshold))
    return 0


def _output(options: argparse.Namespace, *, is_live: bool) -> Optional[str]:
    """Returns the folder of the results; None to write none, which would grow without an end for a stream."""
    if options.output or options.save or options.resume:
        return str(options.output or DEFAULT_OUTPUT)
    return None if options.json or is_live else DEFAULT_OUTPUT


def _sources(options: argparse.Namespace, live: Optional[LiveAddress], output: Optional[str]) -> list[Source]:
    """Returns what the run works on; raises InputError for options that would have no effect on it."""
    for name, default in _FOR_FILES if live else _FOR_STREAMS:
        if getattr(options, name) != default:
            kind, given = ("files", live.title) if live else ("cameras and streams", options.source)
            raise InputError(f"--{name}: for {kind} alone, not for {given}; leave it out")
    if live is None:
        return find_sources(options.source, recursive=options.recursive, leave_out=output)
    if options.resume:
        raise InputError(f"--resume: {live.title} has no end to go on to; give --resume with files alone")
    return [Source(live.name, live.name, address=live.title)]


def _unfinished(sources: Sequence[Source], results: ResultWriter) -> list[Source]:
    left = [source for source in sources if not results.is_finished(source)]
    if len(left) < len(sources):
        log.info("%d of %d files have their results; %d are left", len(sources) - len(left), len(sources), len(left))
    return left


def _open_detector(chosen: DetectorOptions, statistics: RunStatistics) -> Detector:
    detector = chosen.open(statistics)
    if chosen.conf is None and detector.spec.operating_threshold is not None:
        log.info("detections have a score of at least %.8g, the model's operating threshold", detector.score_threshold)
    return detector


def _summary(record: Record) -> str:
    counts: dict[str, int] = {}
    for item in record["detections"]:
        counts[item["class_name"]] = counts.get(item["class_name"], 0) + 1
    frame = f" frame {record['frame']}" if "frame" in record else ""
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    return printable(f"{record['source']}{frame}: {found or 'nothing found'}")


if __name__ == "__main__":
    cli.run(main)
