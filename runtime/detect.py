"""`python -m runtime.detect`: detections of pictures and videos, drawn and as JSON lines."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import cv2

from runtime import cli
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.draw import draw
from runtime.errors import OutputError
from runtime.files import output_folder, replacing
from runtime.images import Image, write_image
from runtime.sources import Source, find_sources, for_each, frame_rate, read_picture, read_video, result_path

log = logging.getLogger(__name__)

DEFAULT_OUTPUT = "runs/detect"


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = cli.parser(
        "runtime.detect",
        "Detect objects in a picture, a folder, a glob pattern or a video.",
        "python -m runtime.detect --engine model.onnx --source photos/ --output found/",
    )
    parser.add_argument(
        "--engine", required=True, help="the model: an .onnx or .engine file of python -m export.onnx or export.engine"
    )
    parser.add_argument("--source", required=True, help="picture, folder, glob pattern (quoted) or video")
    parser.add_argument(
        "--output", help=f"folder for annotated pictures (default: {DEFAULT_OUTPUT}; with --json: none are written)"
    )
    parser.add_argument("--conf", type=cli.probability, default=0.25, help="lowest score shown (default: 0.25)")
    parser.add_argument("--iou", type=cli.probability, help="NMS threshold (default: the model's own, 0.6 in the paper)")
    parser.add_argument("--max-detections", type=cli.positive, default=100, help="per picture (default: 100)")
    parser.add_argument("--json", action="store_true", help="one JSON line per picture or frame on stdout")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read")
    return parser.parse_args(arguments)


def main(arguments: Optional[list[str]] = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    sources = find_sources(options.source)
    wanted = options.output or (None if options.json else DEFAULT_OUTPUT)
    with Detector(
        options.engine, score_threshold=options.conf, iou_threshold=options.iou, max_detections=options.max_detections
    ) as detector:
        folder = output_folder(wanted) if wanted else None

        def work(source: Source) -> None:
            for record in _process(detector, source, result_path(source, folder) if folder else None):
                print(json.dumps(record) if options.json else _summary(record), flush=options.json)

        for_each(sources, work, label="detect", strict=options.strict)
    if folder:
        log.info("annotated pictures are in %s", folder)
    return 0


def _process(detector: Detector, source: Source, target: Optional[Path]) -> Iterator[dict[str, Any]]:
    """Detect in one file and write its annotated copy; yields one record per picture or frame."""
    if source.is_video:
        yield from _process_video(detector, source, target)
        return
    image = read_picture(source)
    found = detector(image)
    if target:
        write_image(target, draw(image, found, detector.spec.class_names))
    yield _record(source, image, found, detector)


def _process_video(detector: Detector, source: Source, target: Optional[Path]) -> Iterator[dict[str, Any]]:
    if target is None:
        for number, frame in enumerate(read_video(source.path)):
            yield {**_record(source, frame, detector(frame), detector), "frame": number}
        return
    with replacing(target) as temporary:
        writer = None
        try:
            for number, frame in enumerate(read_video(source.path)):
                found = detector(frame)
                writer = writer or _open_writer(temporary, frame, frame_rate(source.path))
                writer.write(draw(frame, found, detector.spec.class_names))
                yield {**_record(source, frame, found, detector), "frame": number}
        finally:
            if writer is not None:
                writer.release()


def _open_writer(path: Path, frame: Image, rate: float) -> cv2.VideoWriter:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (frame.shape[1], frame.shape[0]))
    if not writer.isOpened():
        raise OutputError(f"cannot write a video to {path.parent}; choose another --output")
    return writer


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
    return f"{record['source']}{frame}: {found or 'nothing found'}"


if __name__ == "__main__":
    cli.run(main)
