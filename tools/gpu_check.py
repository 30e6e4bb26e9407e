"""Checks real TensorRT on a real GPU, step by step; every step writes what it found to a JSON file.

`prepare` runs on the CPU with everything installed. The others need neither torch nor onnx, and take the folder that it wrote.
docs/gpu-day.md has the order.

Example: `python -m tools.gpu_check prepare --folder day`, then `python -m tools.gpu_check parse --folder day`
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.trt.engine import check_signature, read_spec
from export.trt.float_weights import parse_network
from export.trt.precision_check import network_precision
from runtime import cli
from runtime.backends.open import open_backend
from runtime.backends.tensorrt.library import FLAVORS, dtype_name, open_tensorrt, tensor_shape
from runtime.errors import CheckFailed, DetectorError, InputError
from runtime.files import write_json
from runtime.manifest import write_manifest
from runtime.ops.preprocess import as_input
from runtime.spec import ModelSpec
from tools.gpu_measure import bench, end, soak

log = logging.getLogger("gpu_check")

_COUNTS = (1, 1, 1, 8, 3, 11)
"""Batches in the order they are run: plain, captured, replayed, the largest, another size, split."""
_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-1}
"""Largest difference from ONNX Runtime, as a share of the output's largest value."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser("tools.gpu_check", __doc__ or "", "python -m tools.gpu_check parse --folder day")
    parser.add_argument("step", choices=_STEPS)
    parser.add_argument("--folder", type=Path, required=True, help="with the ONNX files; results are written there too")
    parser.add_argument("--recipe", action="append", help="prepare: models to make (default: yolov3-asff-small, yolov3-asff)")
    parser.add_argument("--size", type=cli.image_side, default=416, help="prepare: their input side (default: 416)")
    parser.add_argument("--flavor", choices=("auto", *FLAVORS), default="auto", help="parse, build: the library")
    parser.add_argument("--optimization-level", type=int, choices=range(6), default=2, help="build (default: 2)")
    parser.add_argument("--time-limit", type=cli.positive, default=180, help="build: seconds for each file (default: 180)")
    parser.add_argument(
        "--onnx",
        action="store_true",
        help="run, bench, soak, exit: the ONNX files instead of the engines, to try the check itself",
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="files whose path in the folder holds this, such as asff/fp16"
    )
    parser.add_argument("--repeats", type=cli.positive, default=200, help="bench: runs of each batch size (default: 200)")
    parser.add_argument("--seconds", type=cli.positive, default=20, help="soak: for each file (default: 20)")
    cli.add_device(parser)
    return parser.parse_args(arguments)


def prepare(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Writes random models in all precisions and with all options, their manifests, and ONNX Runtime's outputs."""
    from benchmarks.engine_files import write_precisions
    from benchmarks.models import settle
    from export.onnx_export.tracer import write_onnx
    from train.model import build_model
    from train.recipes import recipe
    from train.spec import model_spec

    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.recipe or ("yolov3-asff-small", "yolov3-asff"):
        config, classes = recipe(name), ("cat", "dog", "bird")
        model = settle(build_model(config.model, len(classes), config.loss))
        spec = model_spec(config, classes).replace(input_size=(given.size, given.size))
        folder = given.folder / name
        folder.mkdir(exist_ok=True)
        files = {item: (path, spec.replace(precision=item)) for item, path in write_precisions(model, spec, folder).items()}
        for option, changed in (("uint8", spec.replace(input_type="uint8")), ("topk", spec.replace(top_k=300))):
            files[option] = folder / f"{option}.onnx", changed
            write_onnx(model, changed, files[option][0])
        for path, own in files.values():
            write_manifest(path, own, [], {})
            np.savez(path.with_suffix(".golden.npz"), *_run_all(path, images_of(own)))
    return [{"file": str(file.relative_to(given.folder)), "bytes": file.stat().st_size} for file in models(given.folder)]


def parse_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Parses every file and lists its inputs, outputs and precisions; builds nothing."""
    trt = open_tensorrt(given.flavor)

    def work(file: Path) -> dict[str, Any]:
        spec, builder = read_spec(file), trt.create_builder()
        network, parser, has_float_weights = parse_network(trt, builder, file, spec.precision)
        check_signature(file, network, spec)
        tensors = [network.get_input(0), *(network.get_output(index) for index in range(network.num_outputs))]
        found = {
            "library": trt.title,
            "tensors": {tensor.name: [dtype_name(tensor.dtype), *tensor_shape(tensor.shape)] for tensor in tensors},
            "precision": network_precision(trt, network).summary(),
            "float_weights": has_float_weights,
        }
        del parser  # it owns the weights until here
        return found

    return _each(given, work)


def build_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Builds every file in a process of its own, within the time limit."""

    def work(file: Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "export.engine", "--onnx", str(file), "--output", str(file.with_suffix(".engine"))]
        command += ["--flavor", given.flavor, "--optimization-level", str(given.optimization_level), "--batch", "1,1,8"]
        command += ["--timing-cache", str(given.folder / "timing.cache")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=given.time_limit)
        except subprocess.TimeoutExpired as error:
            raise CheckFailed(f"not built within {given.time_limit} s") from error
        if done.returncode:
            raise CheckFailed(f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
        return {"said": done.stderr.strip(), "bytes": file.with_suffix(".engine").stat().st_size}

    return _each(given, work)


def run_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs every engine on batches of several sizes and compares its outputs with ONNX Runtime's."""

    def work(file: Path) -> dict[str, Any]:
        spec = read_spec(file)
        with np.load(file.with_suffix(".golden.npz")) as stored:
            golden = list(stored.values())
        images, worst = images_of(spec), 0.0
        with open_backend(_model(file, given)) as backend:
            for count in _COUNTS:
                for found, expected in zip(backend.infer(images[:count]), golden):
                    worst = max(worst, float(np.abs(found - expected[:count]).max() / np.abs(expected).max()))
            title = backend.title
        found_and_limit = {"library": title, "difference": worst, "limit": _TOLERANCE[spec.precision]}
        if not spec.top_k and not worst <= _TOLERANCE[spec.precision]:  # of equal scores another box may be the next
            raise CheckFailed(f"differs by {worst:.2g} of the largest value, allowed is {_TOLERANCE[spec.precision]:.2g}")
        return found_and_limit

    return _each(given, work)


def bench_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Times every engine, see `gpu_measure.bench`."""
    return _each(given, lambda file: bench(_model(file, given), images_of(read_spec(file)), given.repeats))


def soak_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs every engine for a while, see `gpu_measure.soak`."""
    return _each(given, lambda file: soak(_model(file, given), images_of(read_spec(file)), given.seconds))


def exit_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Ends programs that leave an engine open, see `gpu_measure.end`."""
    return _each(given, lambda file: end(_model(file, given)))


_STEPS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "prepare": prepare,
    "parse": parse_all,
    "build": build_all,
    "run": run_all,
    "soak": soak_all,
    "exit": exit_all,
    "bench": bench_all,
}


def models(folder: Path, only: str = "") -> list[Path]:
    """Returns the ONNX files in the folders of a folder whose path there holds `only`, the smallest first.

    Raises:
        InputError: there are none.
    """
    files = (file for file in folder.glob("*/*.onnx") if only in str(file.relative_to(folder)))
    found = sorted(files, key=lambda file: file.stat().st_size)
    if not found:
        which = f" with {only!r} in its path" if only else ""
        raise InputError(
            f"{folder}: no */*.onnx in it{which}; make them with `python -m tools.gpu_check prepare --folder {folder}`"
        )
    return found


def images_of(spec: ModelSpec) -> NDArray[Any]:
    """Makes the input of a check: the same random images everywhere, prepared for a model."""
    pixels = np.random.default_rng(0).integers(0, 256, (max(_COUNTS), *spec.input_size, 3), dtype=np.uint8)
    return np.stack([as_input(image, spec) for image in pixels])


def _run_all(file: Path, images: NDArray[Any]) -> Sequence[NDArray[np.float32]]:
    with open_backend(file, "onnxruntime") as backend:
        parts = [backend.infer(image[None]) for image in images]
    return [np.concatenate(maps) for maps in zip(*parts)]


def _model(file: Path, given: argparse.Namespace) -> Path:
    """Returns what a step runs: the engine of an ONNX file, or that file itself."""
    return file if given.onnx else file.with_suffix(".engine")


def _each(given: argparse.Namespace, work: Callable[[Path], dict[str, Any]]) -> list[dict[str, Any]]:
    return [_tried(given.folder, file, work) for file in models(given.folder, given.only)]


def _tried(folder: Path, file: Path, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Does a step for one file; a failure is its result, so that the others get their turn."""
    start = time.perf_counter()
    try:
        result = {"ok": True, **work(file)}
    except DetectorError as error:
        result = {"ok": False, "error": str(error)}
    log.info("%s: %s", file.relative_to(folder), "ok" if result["ok"] else result["error"])
    return {"file": str(file.relative_to(folder)), "seconds": round(time.perf_counter() - start, 2), **result}


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    results = _STEPS[given.step](given)
    write_json(given.folder / f"{given.step}.json", results)
    print(given.folder / f"{given.step}.json")
    return 0 if all(item.get("ok", True) for item in results) else CheckFailed.exit_code


if __name__ == "__main__":
    cli.run(main)
