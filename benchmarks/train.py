"""Times training steps by their parts, in the loop that trains: same loader, model, loss, optimizer and precision.

Each configuration trains a fresh model for some steps at one input size. Images are read and decoded each time, as those of a
set too large for the cache are.

Example: `python -m benchmarks.train --recipe yolov3-asff-small yolov3-asff --size 416 608 --batch 16 --output train.json`
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.step_clock import PARTS, StepClock
from runtime import cli
from runtime.benchmark import footprint
from runtime.benchmark.images import made_up_image
from runtime.benchmark.timing import spread
from runtime.errors import DetectorError
from runtime.files import check_writable, write_json
from runtime.media.image import write_image
from train import checkpoint
from train.config import PRECISIONS, TrainConfig
from train.data.epoch import SampleIndex
from train.distributed import World
from train.loop import train_epoch
from train.overrides import with_size
from train.recipes import recipe
from train.run.device import choose_device
from train.run.options import RunOptions
from train.run.prepare import Run, prepare

log = logging.getLogger("benchmarks.train")

_WARM_UP = 5  # steps that do not count: compilation, the choice of kernels, the first batches
_CLASSES, _LABELS = 80, 7  # COCO's classes, and its labels an image
_IMAGES, _VAL_IMAGES = 64, 2


@dataclass
class _Repeated(Run):
    """A run whose epoch has a number of steps of its own, the planned batches again and again.

    Attributes:
        steps: of an epoch.
    """

    steps: int = 0

    def plan_epoch(self) -> list[list[SampleIndex]]:
        return list(itertools.islice(itertools.cycle(super().plan_epoch()), self.steps))


def measure(config: TrainConfig, options: RunOptions, steps: int) -> dict[str, Any]:
    """Trains `steps` steps after a warm-up; returns what they took, as plain values for JSON.

    Where the steps fail, as on too little memory, `error` says why.

    Raises:
        DetectorError: the data cannot be opened, or the device is not there.
    """
    prepared = prepare(config, options, None, World())
    run = _Repeated(**vars(prepared), steps=_WARM_UP + steps)
    row: dict[str, Any] = {
        "recipe": config.recipe,
        "size": config.size,
        "batch": len(run.plan_epoch()[0]),
        "computed": run.state.precision.describe(run.state.optimizer),
        "ema": bool(config.ema),
        "gradient_bytes": sum(weight.nbytes for weight in run.state.model.parameters() if weight.requires_grad),
        "input_bytes": 3 * config.size**2,  # of an image, uint8
    }
    with run.feed:
        row |= _loader_speed(run)
        clock = StepClock(run.device)
        clock.watch(run)
        _reset_peak(run.device)
        try:
            train_epoch(run)
        except DetectorError as error:
            log.error("%s at %d: %s", config.recipe, config.size, error)
            return row | {"error": str(error)}
        times = clock.read(_WARM_UP)
    row |= {
        "images_per_second": 1e3 * row["batch"] / statistics.mean(times.totals),
        "step_ms": spread(times.totals),
        "parts_ms": {part: statistics.median(step[part] for step in times.steps) for part in PARTS},
        "waiting": times.waiting,
        "peak_bytes": _peak(run.device),
    }
    return row | _checkpoint_cost(run)


def _loader_speed(run: Run) -> dict[str, Any]:
    """Measures the images a second that the feed makes where nothing is trained."""
    workers = run.feed.workers
    first = 2 * workers + 1  # what the workers make before they are asked
    planned = run.plan_epoch()
    plan = list(itertools.islice(itertools.cycle(planned), first + max(len(planned), 4 * workers)))
    images, start = 0, 0.0
    for number, batch in enumerate(run.feed.batches(plan), 1):
        images += len(batch.images)
        if number == first:
            images, start = 0, time.perf_counter()
    return {"workers": workers, "loader_images_per_second": images / (time.perf_counter() - start)}


def _checkpoint_cost(run: Run) -> dict[str, Any]:
    """Measures the size of the state of a run, and the time to write it to the disk of temporary files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        start = time.perf_counter()
        checkpoint.save(path, run.state.checkpoint())
        return {"checkpoint_ms": (time.perf_counter() - start) * 1e3, "checkpoint_bytes": path.stat().st_size}


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # where the system has no such file, the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int | None:
    """Returns the most memory in use since `_reset_peak`: tensors on a GPU, else all of this process; None if not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return round(footprint.peak() * 1e6)
    except OSError:
        return None


def make_images(folder: Path, count: int) -> Path:
    """Writes made-up JPEG images of 640x480 with random labels, in the COCO layout; returns the folder."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", _VAL_IMAGES)):
        for number in range(images):
            write_image(folder / split / f"{number}.jpg", made_up_image(rng))
        sides = np.exp(rng.uniform(np.log(12), np.log(400), (images * _LABELS, 2)))
        corners = rng.random((images * _LABELS, 2)) * ((640, 480) - sides)
        boxes = np.concatenate([corners, sides], axis=1).round(2).tolist()
        annotations = [
            {"id": number, "image_id": number // _LABELS, "category_id": number % _CLASSES, "bbox": box, "iscrowd": 0}
            | {"area": box[2] * box[3]}
            for number, box in enumerate(boxes)
        ]
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(images)],
            "annotations": annotations,
            "categories": [{"id": i, "name": f"class {i}"} for i in range(_CLASSES)],
        }
        write_json(folder / "annotations" / f"instances_{split}.json", content)
    return folder


def configurations(options: argparse.Namespace) -> Iterator[TrainConfig]:
    """Yields each recipe at each size, as the command line changes them."""
    changes = {name: getattr(options, name) for name in ("batch", "precision", "ema") if getattr(options, name) is not None}
    for name in options.recipe:
        config = recipe(name)
        for size in options.size or [config.size]:
            yield with_size(config, size).replace(sizes=(size,), **changes)


def machine(device: torch.device) -> dict[str, Any]:
    """Describes what the times are from."""
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


_HEAD = f"{'recipe':26}{'size':>5}{'batch':>6}{'images/s':>10}{'step':>9}" + "".join(f"{part:>10}" for part in PARTS)


def line(row: dict[str, Any]) -> str:
    """Formats a row of the table; times in milliseconds."""
    text = f"{row['recipe']:26}{row['size']:5}{row['batch']:6}"
    if "error" in row:
        return f"{text}  failed, see above; the loader alone gives {row['loader_images_per_second']:.1f} images/s"
    parts = "".join(f"{value:10.1f}" for value in row["parts_ms"].values())
    peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
    return (
        f"{text}{row['images_per_second']:10.1f}{row['step_ms']['median']:9.1f}{parts}"
        f"{row['waiting']:9.0%}{row['loader_images_per_second']:10.1f}{peak:>9}"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "benchmarks.train",
        "Time training steps by their parts, with peak memory and the loader's own speed.",
        "python -m benchmarks.train --recipe yolov3-asff-small --size 256 --batch 16 --output train.json",
    )
    parser.add_argument("--data", type=Path, help="dataset folder (default: made-up images of 640x480)")
    parser.add_argument("--recipe", nargs="+", default=["yolov3-asff"], help="(default: yolov3-asff)")
    parser.add_argument("--size", type=cli.image_side, nargs="+", help="input sides (default: the recipe's)")
    parser.add_argument("--batch", type=cli.positive, help="images a step (default: the recipe's)")
    parser.add_argument("--steps", type=cli.positive, default=20, help=f"timed, after {_WARM_UP} more (default: 20)")
    parser.add_argument("--precision", choices=PRECISIONS, help="auto: bf16 where the device has it, else fp32")
    parser.add_argument("--compile", action="store_true", help="compile the network")
    parser.add_argument("--ema", type=cli.share, nargs="?", const=0.9998, metavar="DECAY", help="average the weights too")
    parser.add_argument("--workers", type=cli.count, help="processes that prepare batches (default: by the cores)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="written anew after each configuration")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    chosen = list(configurations(options))
    if options.output:
        cli.check_suffix(options.output, ".json")
        check_writable(options.output)
    found: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images = max(_IMAGES, *(config.batch for config in chosen))
        data = options.data or make_images(folder, images)
        run = RunOptions(
            data=data,
            output=folder,  # nothing is written there
            device=options.device,
            workers=options.workers,
            compile_with="inductor" if options.compile else None,
            progress=False,
            cache=False,
        )
        print(f"{_HEAD}{'waiting':>9}{'loader':>10}{'MB':>9}", flush=True)
        for config in chosen:
            found.append(measure(config, run, options.steps))
            print(line(found[-1]), flush=True)
            if options.output:
                write_json(options.output, {"machine": machine(choose_device(options.device)), "results": found})
            torch.compiler.reset()
    return 1 if any("error" in row for row in found) else 0


if __name__ == "__main__":
    cli.run(main)
