"""Times the whole `Detector` on real images against the bare session on a ready tensor.

The model is the full YOLOv3+ASFF at 416 pixels with random weights unless --engine names another; FP32 on the CPU.

Example: `python -m benchmarks.detector --data datasets/coco`
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from benchmarks.timing import alternate
from export.onnx_export.tracer import write_onnx
from runtime import cli
from runtime.backends.ort import OrtBackend
from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.ops.preprocess import preprocess
from train.model import build_model
from train.recipes import recipe
from train.spec import model_spec


def make_model(folder: Path, size: int) -> Path:
    """Exports the full model with random weights."""
    config = recipe("yolov3-asff").replace(size=size)
    torch.manual_seed(0)
    model = build_model(config.model, 80, config.loss)
    write_onnx(model.eval(), model_spec(config, tuple(map(str, range(80)))), folder / "model.onnx")
    return folder / "model.onnx"


def measure(engine: Path, data: str, split: str, images: int) -> dict[str, float]:
    """Times the detector and the session alone on each image in turn; returns median milliseconds an image."""
    photos = [entry.read() for entry in open_dataset(data, split).images[:images]]
    with OrtBackend(engine) as backend:
        detector = Detector(backend)
        ready = [preprocess(image, backend.spec)[0][None] for image in photos]
        whole: list[float] = []
        bare: list[float] = []
        for image, tensor in zip(photos, ready):
            times = alternate(
                {"whole": lambda i=image: detector(i), "bare": lambda t=tensor: backend.infer(t)},  # type: ignore[misc]
                repeats=1,
                warm_up=1 if not whole else 0,
            )
            whole.append(times["whole"])
            bare.append(times["bare"])
    return {"detector": sorted(whole)[len(whole) // 2], "session": sorted(bare)[len(bare) // 2]}


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser(
        "benchmarks.detector",
        "Time the whole detector on images against the bare session.",
        "python -m benchmarks.detector --data datasets/coco",
    )
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--split", default="val", help="default: the one that plays `val`")
    parser.add_argument("--engine", type=Path, help="an exported model (default: full yolov3-asff, random weights)")
    parser.add_argument("--size", type=cli.image_side, default=416, help="of the random model (default: 416)")
    parser.add_argument("--images", type=cli.positive, default=30, help="default: 30")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        engine = options.engine or make_model(Path(folder), options.size)
        times = measure(engine, options.data, options.split, options.images)
    if options.json:
        print(json.dumps(times, indent=1))
    else:
        ratio = times["detector"] / times["session"]
        print(f"detector {times['detector']:.1f} ms, bare session {times['session']:.1f} ms: {ratio:.3f} x")
    return 0


if __name__ == "__main__":
    cli.run(main)
