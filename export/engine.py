"""`python -m export.engine`: builds a TensorRT engine of proven precision from an ONNX file, with its manifest beside it."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

from export.trt.builder import BuildOptions
from export.trt.engine import build_engine, choose_output, read_spec
from runtime import cli
from runtime.backends.tensorrt.engine_info import RTX_GPUS
from runtime.backends.tensorrt.library import FLAVORS, open_tensorrt
from runtime.errors import InputError

log = logging.getLogger("engine")

_MAX_WORKSPACE = 1024  # GiB, beyond any GPU


def _batches(text: str) -> tuple[int, int, int]:
    sizes = tuple(cli.positive(part) for part in text.split(","))
    if len(sizes) == 1:
        return sizes * 3
    if len(sizes) != 3 or list(sizes) != sorted(sizes):
        raise argparse.ArgumentTypeError(f"expected MIN,OPT,MAX in rising order, or one number, got {text}")
    return sizes[0], sizes[1], sizes[2]


def _workspace(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or not 0 < value <= _MAX_WORKSPACE:
        raise argparse.ArgumentTypeError(f"expected GiB above 0 and at most {_MAX_WORKSPACE}, got {text}")
    return value


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "export.engine",
        "Build a TensorRT engine from an ONNX file and prove its precision, which is that of the file."
        " FILE.engine.json beside it says what it was made from. Exit codes: 0 done, 1 the file or the engine does not have the"
        " precision it claims, 2 bad input, 3 no TensorRT or no GPU for it, 130 Ctrl-C; nothing is written unless it is 0.",
        "python -m export.engine --onnx yolov3-asff.onnx --flavor rtx --batch 1,1,8",
    )
    parser.add_argument("--onnx", type=cli.model_file, required=True, help="file written by python -m export.onnx")
    parser.add_argument("--output", type=Path, help="default: NAME-SIZE-PRECISION.engine beside the ONNX file")
    parser.add_argument(
        "--flavor",
        "--flavour",
        choices=("auto", *FLAVORS),
        default="auto",
        help="tensorrt needs a GPU, rtx (TensorRT-RTX) builds without; auto (default): the first of them that works here",
    )
    parser.add_argument("--batch", type=_batches, metavar="MIN,OPT,MAX", help="batch sizes it takes (default: 1,1,8)")
    parser.add_argument("--workspace", type=_workspace, metavar="GIB", help="scratch memory of a layer (default: no limit)")
    parser.add_argument("--optimization-level", type=int, choices=range(6), help="0 builds fastest (default: the library's)")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings to use and extend: faster builds")
    parser.add_argument("--version-compatible", action="store_true", help="loads in later versions of TensorRT too")
    parser.add_argument("--hardware-compatible", action="store_true", help="runs on every GPU from Ampere on")
    parser.add_argument(
        "--same-compute-capability", action="store_true", help="runs on every GPU of the compute capability (TensorRT 10.9 on)"
    )
    parser.add_argument(
        "--dla", type=cli.count, metavar="CORE", help="run on this DLA core of a Jetson, what it cannot run on the GPU"
    )
    parser.add_argument("--tf32", action="store_true", help="float32 layers may compute in TF32: faster, with FP16's precision")
    cli.add_device(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    options = BuildOptions(
        batch=given.batch,
        workspace=given.workspace,
        level=given.optimization_level,
        timing_cache=given.timing_cache,
        version_compatible=given.version_compatible,
        hardware_compatible=given.hardware_compatible,
        same_compute_capability=given.same_compute_capability,
        dla=given.dla,
        tf32=given.tf32,
    )
    spec = read_spec(given.onnx)
    trt = open_tensorrt(given.flavor)
    output = choose_output(given.output, given.onnx, spec, trt.flavor)
    if given.timing_cache and given.timing_cache.resolve() in (given.onnx.resolve(), output.resolve()):
        raise InputError(f"--timing-cache {given.timing_cache}: that is the model; choose another file")
    details = build_engine(trt, given.onnx, spec, output, options)
    log.info(
        "%s: %d of %d convolutions in %s, by %s; built in %.1f s for batch %s, %.1f MB",
        trt.title,
        details["network"][spec.precision],
        details["network"]["convolutions"],
        spec.precision,
        "network and engine inspector" if details["inspector"] else "the types of the network",
        details["build_seconds"],
        "/".join(map(str, details["batch"].values())),
        output.stat().st_size / 1e6,
    )
    if trt.flavor == "rtx":
        int8 = "; NVIDIA's support matrix lists INT8 for weights alone" if spec.precision == "int8" else ""
        log.info("%s: its engines run on %s%s", trt.title, RTX_GPUS, int8)
    print(output)
    return 0


if __name__ == "__main__":
    cli.run(main)
