"""`python -m benchmarks.video`: a video decoded, detected in, drawn and encoded, one after the other and overlapped.

The video is made of a dataset's pictures, each shown for a second; yolov3-asff-small at 416 pixels with random weights
unless --engine names a model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import cv2

from benchmarks.backends import make_model
from benchmarks.timing import alternate
from runtime import cli
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.draw import draw
from runtime.images import Image
from runtime.layouts import open_dataset
from runtime.video import read_video, write_video

_RATE = 25


def make_video(path: Path, data: str, size: tuple[int, int], seconds: int) -> Path:
    """A video of (width, height) `size`."""
    with write_video(path, _RATE) as write:
        for entry in open_dataset(data, "val").images[:seconds]:
            picture = cv2.resize(entry.read(), size)
            for shift in range(_RATE):
                write(cv2.warpAffine(picture, cv2.getRotationMatrix2D((0, 0), 0, 1 + shift / 100), size))
    return path


def measure(detector: Detector, video: Path, repeats: int, batches: list[int]) -> dict[str, float]:
    """Median milliseconds for the whole video of each way, which take turns."""
    annotated = video.with_name("annotated.mp4")

    def consume(results: Iterable[tuple[Image, Detections]]) -> None:
        with write_video(annotated, _RATE) as write:
            for frame, found in results:
                write(draw(frame, found, detector.spec.class_names))

    ways = {
        "decode, draw, encode alone": lambda: consume((frame, Detections.empty()) for frame in read_video(video)),
        "detect alone": lambda: [detector(frame) for frame in [next(read_video(video))] * sum(1 for _ in read_video(video))],
        "one after the other": lambda: consume((frame, detector(frame)) for frame in read_video(video)),
    }
    for batch in batches:
        ways[f"overlapped, {batch} at a time"] = lambda b=batch: consume(detector.stream(read_video(video), batch=b))
    return alternate(ways, repeats, warm_up=1)


def report(options: argparse.Namespace) -> None:
    """Measure and print."""
    width, height = options.frame
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = make_video(folder / "film.mp4", options.data, (width, height), options.seconds)
        with Detector(options.engine or make_model(folder, options.size), backend=options.backend) as detector:
            times = measure(detector, video, options.repeats, options.batch)
    if options.json:
        print(json.dumps(times, indent=1))
        return
    for way, value in times.items():
        print(f"{way:28} {value / options.seconds / _RATE:8.1f} ms/frame {times['one after the other'] / value:6.2f} x")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = cli.parser(
        "benchmarks.video", "Overlapping the stages of a video.", "python -m benchmarks.video --data datasets/coco"
    )
    parser.add_argument("--data", required=True, help="dataset folder, COCO or VOC layout")
    parser.add_argument("--engine", type=Path, help="a model (default: yolov3-asff-small, random weights)")
    parser.add_argument("--backend", default="auto", help="what runs it (default: auto)")
    parser.add_argument("--size", type=cli.image_side, default=416, help="of the random model (default: 416)")
    parser.add_argument("--frame", type=int, nargs=2, default=(1280, 720), help="width and height (default: 1280 720)")
    parser.add_argument("--seconds", type=cli.positive, default=8, help="of video (default: 8)")
    parser.add_argument("--batch", type=cli.positive, nargs="+", default=[1], help="frames at a time (default: 1)")
    parser.add_argument("--repeats", type=cli.positive, default=5, help="default: 5")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    report(parser.parse_args(arguments))
    return 0


if __name__ == "__main__":
    cli.run(main)
