"""Times decoding, detection, drawing and encoding of a video, one after the other and overlapped.

The video is made of a dataset's images, each zoomed into for a second. The model is yolov3-asff-small at 416 pixels with random
weights unless --engine names another. The same is measured with a stand-in for an accelerator, which waits --wait milliseconds
a frame and leaves the CPU free.

Example: `python -m benchmarks.video --data datasets/coco`
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.backends import make_model
from benchmarks.timing import alternate
from runtime import cli
from runtime.backends.base import Backend
from runtime.backends.open import open_backend
from runtime.datasets.open import open_dataset
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.media.video import read_video
from runtime.media.video_writer import write_video
from runtime.ops.image import Image
from runtime.viz.annotate import draw

_RATE = 25
_SIZE = (1280, 720)
_ALONE, _SERIAL, _OVERLAPPED = "decode, draw, encode alone", "one after the other", "overlapped"


class _Accelerator:
    """Backend that waits and then returns the model's maps of a gray image, whatever the batch."""

    def __init__(self, backend: Backend, seconds: float) -> None:
        self.spec, self.batch_size = backend.spec, backend.batch_size
        self._seconds = seconds
        self._outputs = backend.infer(np.zeros((self.batch_size or 1, *self.spec.input_shape), self.spec.input_type))

    def infer(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        time.sleep(self._seconds)
        return self._outputs

    def close(self) -> None:
        pass


def make_video(path: Path, data: str, seconds: int) -> Path:
    """Writes the video, 1280 x 720."""
    with write_video(path) as write:
        for number, entry in enumerate(open_dataset(data, "val").images[:seconds]):
            image = cv2.resize(entry.read(), _SIZE)
            for step in range(_RATE):
                moved = cv2.warpAffine(image, cv2.getRotationMatrix2D((0, 0), 0, 1 + step / 100), _SIZE)
                write(moved, number + step / _RATE)
    return path


def measure(detector: Detector, video: Path, repeats: int) -> dict[str, float]:
    """Times each way in turn; returns median milliseconds for the whole video."""

    def consume(results: Iterable[tuple[Image, Detections]]) -> None:
        with write_video(video.with_name("annotated.mp4")) as write:
            for number, (frame, found) in enumerate(results):
                write(draw(frame, found, detector.spec.class_names), number / _RATE)

    ways: dict[str, Callable[[], None]] = {
        _ALONE: lambda: consume((frame, Detections.empty()) for frame in read_video(video)),
        _SERIAL: lambda: consume((frame, detector(frame)) for frame in read_video(video)),
        _OVERLAPPED: lambda: consume(detector.stream(read_video(video))),
    }
    return alternate(ways, repeats, warm_up=1)


def report(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = make_video(folder / "film.mp4", options.data, options.seconds)
        with open_backend(options.engine or make_model(folder, options.size), options.backend) as backend:
            detectors = {"model": Detector(backend), "stand-in": Detector(_Accelerator(backend, options.wait / 1e3))}  # type: ignore[arg-type]
            times = {what: measure(detector, video, options.repeats) for what, detector in detectors.items()}
    if options.json:
        print(json.dumps(times, indent=1))
        return
    for what, found in times.items():
        for way, value in found.items():
            print(f"{what:10}{way:28}{value / options.seconds / _RATE:8.1f} ms/frame{found[_SERIAL] / value:8.2f} x")


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser(
        "benchmarks.video",
        "Time what overlapping the stages of a video gains.",
        "python -m benchmarks.video --data datasets/coco",
    )
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--engine", type=Path, help="a model (default: yolov3-asff-small, random weights)")
    parser.add_argument("--backend", default="auto", help="what runs it (default: auto)")
    parser.add_argument("--size", type=cli.image_side, default=416, help="of the random model (default: 416)")
    parser.add_argument("--wait", type=cli.positive, default=10, help="milliseconds of the stand-in (default: 10)")
    parser.add_argument("--seconds", type=cli.positive, default=4, help="of video (default: 4)")
    parser.add_argument("--repeats", type=cli.positive, default=5, help="default: 5")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    report(parser.parse_args(arguments))
    return 0


if __name__ == "__main__":
    cli.run(main)
