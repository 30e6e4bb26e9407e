"""Command line `python -m runtime.detect`: detects objects in images and videos, drawn and as JSON lines."""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from runtime import cli
from runtime.console.terminal import printable
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.files import output_folder
from runtime.media.image import write_image
from runtime.media.sources import SkippedSources, Source, find_sources, read_each, read_source
from runtime.media.video import Frame, frame_count, read_frames
from runtime.media.video_writer import write_video
from runtime.ops.image import Image
from runtime.results.paths import result_paths
from runtime.streaming.prefetch import close_generator
from runtime.viz.annotate import draw

log = logging.getLogger(__name__)

DEFAULT_OUTPUT = "runs/detect"


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = cli.parser(
        "runtime.detect",
        "Detect objects in an image, a folder, a glob pattern or a video.",
        "python -m runtime.detect --engine model.onnx --source photos/ --output found/",
    )
    cli.add_model(parser)
    parser.add_argument("--source", required=True, help="image, folder, glob pattern (quoted) or video")
    parser.add_argument(
        "--output", help=f"folder for annotated images (default: {DEFAULT_OUTPUT}; with --json: none are written)"
    )
    cli.add_conf(parser)
    parser.add_argument("--iou", type=cli.probability, help="NMS threshold (default: the model's own, 0.6 in the paper)")
    parser.add_argument("--max-detections", type=cli.positive, default=100, help="per image (default: 100)")
    parser.add_argument("--json", action="store_true", help="one JSON line per image or frame on stdout")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read, or not to its end")
    return parser.parse_args(arguments)


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    sources = find_sources(options.source)
    wanted = options.output or (None if options.json else DEFAULT_OUTPUT)
    with _open_detector(options) as detector, SkippedSources(len(sources), strict=options.strict) as skipped:
        folder = output_folder(wanted) if wanted else None
        targets = result_paths(sources, folder) if folder else {}
        images = read_each(sources, _read, skipped, label="detect")
        with close_generator(images):
            for source, image in images:
                records = _detect(detector, source, image, targets.get(source), options.strict)
                with skipped.skip_unusable(), close_generator(records):
                    for record in records:
                        print(json.dumps(record) if options.json else _summary(record), flush=options.json)
    if folder:
        log.info("annotated images are in %s", folder)
    return 0


def _open_detector(options: argparse.Namespace) -> Detector:
    detector = Detector(
        options.engine,
        backend=options.backend,
        score_threshold=options.conf,
        iou_threshold=options.iou,
        max_detections=options.max_detections,
    )
    if options.conf is None and detector.spec.operating_threshold is not None:
        log.info("detections have a score of at least %.8g, the model's operating threshold", detector.score_threshold)
    return detector


def _read(source: Source) -> Optional[Image]:
    """Reads an image; None for a video, whose frames are read while others are worked on."""
    return None if source.is_video else read_source(source)


def _detect(
    detector: Detector, source: Source, image: Optional[Image], target: Optional[Path], strict: bool
) -> Iterator[dict[str, Any]]:
    """Yields a record an image or frame, after its annotated copy was written to `target`."""
    if image is None:
        yield from _detect_in_video(detector, source, target, strict)
        return
    found = detector(image)
    if target:
        write_image(target, draw(image, found, detector.spec.class_names))
    yield _record(source, image, found, detector)


def _detect_in_video(detector: Detector, source: Source, target: Optional[Path], strict: bool) -> Iterator[dict[str, Any]]:
    """Detects in the frames of a video and writes its annotated copy; yields a record a frame.

    While a frame is drawn and encoded here, the model runs on the next one, and a third one is decoded, in other threads.
    """
    times: collections.deque[float] = collections.deque()  # of the frames that are on their way
    results = detector.stream(_images(read_frames(source.path, strict=strict), times))
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(write_video(target)) if target else None
        stack.enter_context(close_generator(results))
        bar = tqdm(results, printable(source.path.name, 40), frame_count(source.path), unit="frame", disable=None, leave=False)
        for number, (frame, found) in enumerate(bar):
            time = times.popleft()
            if write:
                write(draw(frame, found, detector.spec.class_names), time)
            yield {**_record(source, frame, found, detector), "frame": number}


def _images(frames: Generator[Frame, None, None], times: collections.deque[float]) -> Generator[Image, None, None]:
    """Yields the images of frames and appends their times to `times`."""
    with close_generator(frames):
        for frame in frames:
            times.append(frame.time)
            yield frame.image


def _record(source: Source, image: Image, found: Detections, detector: Detector) -> dict[str, Any]:
    return {
        "source": str(source.path),
        "width": image.shape[1],
        "height": image.shape[0],
        "detections": found.to_dicts(detector.spec.class_names),
    }


def _summary(record: dict[str, Any]) -> str:
    counts: dict[str, int] = {}
    for item in record["detections"]:
        counts[item["class_name"]] = counts.get(item["class_name"], 0) + 1
    frame = f" frame {record['frame']}" if "frame" in record else ""
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    return printable(f"{record['source']}{frame}: {found or 'nothing found'}")


if __name__ == "__main__":
    cli.run(main)
