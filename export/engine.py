"""`python -m export.engine`: an ONNX file as a TensorRT engine of proven precision, with its description beside it."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.trt.builder import (
    BuildOptions,
    batch_profile,
    build_plan,
    configure,
    load_timing_cache,
    save_timing_cache,
    usable_options,
)
from export.trt.precision_check import check_inspected, check_network, inspected_types, network_precision
from runtime import cli
from runtime.backends import signature
from runtime.backends.gpu import find_gpu
from runtime.backends.tensorrt.library import FLAVORS, TensorRT, dtype_name, open_tensorrt, tensor_shape
from runtime.errors import InputError, MissingComponentError, ModelError, OutputError
from runtime.files import check_writable, sha256
from runtime.manifest import Origin, manifest_path, read_manifest, write_manifest
from runtime.spec import ModelSpec

log = logging.getLogger("engine")

_MAX_WORKSPACE = 1024  # GiB, beyond any GPU


def read_spec(path: Path) -> ModelSpec:
    """The description in an ONNX file's metadata; without the onnx package, as on a machine that builds and no more, the one
    in the manifest beside it.

    Raises:
        InputError: no such file.
        ModelError: not an ONNX file, or one without our metadata; or the manifest is of another file.
        MissingComponentError: neither onnx nor a manifest.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such ONNX file; make one with `python -m export.onnx`")
    try:
        import onnx
    except ImportError as error:
        return _spec_beside(path, error)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's error type differs between its versions
        raise ModelError(f"{path}: not an ONNX file, or a damaged one; make it with `python -m export.onnx`") from error
    try:
        return ModelSpec.from_metadata({item.key: item.value for item in model.metadata_props})
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _spec_beside(path: Path, error: ImportError) -> ModelSpec:
    beside = manifest_path(path)
    if not beside.is_file():
        raise MissingComponentError(
            f"onnx is not installed; run `pip install onnx`, or put {beside.name} beside {path}"
        ) from error
    manifest = read_manifest(beside)
    if manifest.sha256 != sha256(path):
        raise ModelError(f"{path}: is not the file that {beside.name} describes; copy both again") from error
    return manifest.spec


def engine_name(spec: ModelSpec) -> str:
    """The name of a model's engine, such as `yolov3-asff-608-fp16.engine`."""
    height, width = spec.input_size
    size = str(height) if height == width else f"{height}x{width}"
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', spec.name).lstrip('.-') or 'model'}-{size}-{spec.precision}.engine"


def choose_output(path: Path | None, model: Path, spec: ModelSpec, flavor: str) -> Path:
    """Where the engine goes: `path`, or by default the model's own name for it, beside the ONNX file.

    Raises:
        InputError: a name that does not end in .engine, or a default that would replace the engine of another model.
    """
    if path:
        cli.check_suffix(path, ".engine")
        if path.resolve() == model.resolve():
            raise InputError(f"--output {path}: that is the ONNX file itself; choose another name")
        return path
    output = model.parent / engine_name(spec)
    if output.exists() and not _is_made_from(output, model, flavor):
        raise InputError(f"{output} is there already, made from another file or by another flavor; name one with --output")
    return output


def _is_made_from(engine: Path, model: Path, flavor: str) -> bool:
    """Whether an engine's manifest says that it was made from this file, whatever the file holds by now."""
    try:
        manifest = read_manifest(manifest_path(engine))
    except InputError:
        return False
    names = [os.path.realpath(engine.parent / item.name) for item in manifest.made_from]
    details: Any = manifest.details.get("engine")
    return os.path.realpath(model) in names and isinstance(details, dict) and details.get("flavour") == flavor


def check_signature(path: Path, network: Any, spec: ModelSpec) -> int | None:
    """Checks a parsed network's inputs and outputs against the spec; returns the fixed batch size, if any.

    Raises:
        ModelError: names, dtypes or shapes differ from what the spec promises.
    """
    inputs = [_port(network.get_input(index)) for index in range(network.num_inputs)]
    outputs = [_port(network.get_output(index)) for index in range(network.num_outputs)]
    return signature.check_signature(path, inputs, outputs, spec)


def _port(tensor: Any) -> signature.Port:
    return signature.Port(tensor.name, dtype_name(tensor.dtype), tensor_shape(tensor.shape))


def build_engine(trt: TensorRT, model: Path, spec: ModelSpec, output: Path, options: BuildOptions) -> dict[str, Any]:
    """Build the engine of an ONNX file and prove its precision; write it and its manifest only then.

    Args:
        spec: the file's own description, see `read_spec`.

    Returns:
        What the manifest keeps of the engine.

    Raises:
        InputError: the file, an option or the output cannot be used.
        CheckFailed: the file or the engine is not of the precision that the description claims.
        MissingComponentError: the library does not start here.
    """
    options = usable_options(trt, options)
    check_writable(output)
    made_from = Origin.of("onnx", model, output)
    builder = trt.create_builder()
    network = trt.create_network(builder)
    parser = trt.parse_onnx(network, model)
    batch = batch_profile(check_signature(model, network, spec), options.batch)
    precision = network_precision(trt, network)
    check_network(model, precision, spec.precision)
    config = configure(trt, builder, network, precision, batch, options)
    if options.timing_cache:
        check_writable(options.timing_cache)
        load_timing_cache(trt, config, options.timing_cache)
    start = time.perf_counter()
    plan = build_plan(trt, builder, network, config)
    seconds = time.perf_counter() - start
    del parser  # it owned the weights until here
    inspected = None
    gpu = find_gpu()
    if gpu:
        inspected = inspected_types(trt.inspect(trt.deserialize(plan, version_compatible=options.version_compatible)))
        check_inspected(trt, inspected, spec.precision)
    facts = {
        "flavour": trt.flavor,
        "version": trt.version,
        "gpu": gpu.name if gpu else None,
        "compute_capability": gpu.compute_capability if gpu else None,
        "batch": dict(zip(("min", "opt", "max"), batch)),
        "build_seconds": round(seconds, 2),
        "optimization_level": int(config.builder_optimization_level),
        "workspace_gib": options.workspace,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "strongly_typed": trt.is_typed,
        "network": precision.summary(),
        "inspector": inspected,
    }
    _write(output, plan, spec, made_from, facts)
    if options.timing_cache:
        save_timing_cache(config, options.timing_cache)
    return facts


def _write(output: Path, plan: bytes, spec: ModelSpec, made_from: Origin, facts: Mapping[str, Any]) -> None:
    """Write plan and manifest in a folder of their own, and only then put both in place."""
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".engine-") as folder:
            written = Path(folder) / output.name
            written.write_bytes(plan)
            write_manifest(written, spec, [made_from], {"engine": facts})
            os.replace(manifest_path(written), manifest_path(output))
            os.replace(written, output)
    except OSError as error:
        raise OutputError(
            f"cannot write {output}: {error.strerror or error}; choose another output or free some space"
        ) from error


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
    """The command's arguments."""
    parser = cli.parser(
        "export.engine",
        "Build a TensorRT engine from an ONNX file and prove its precision, which is that of the file."
        " FILE.engine.json beside it says what was made from what. Exit codes: 0 done, 1 the file or the engine is not of the"
        " precision it claims, 2 bad input, 3 no TensorRT or no GPU for it, 130 Ctrl-C; nothing is written unless it is 0.",
        "python -m export.engine --onnx yolov3-asff.onnx --flavor rtx --batch 1,1,8",
    )
    parser.add_argument("--onnx", type=Path, required=True, help="file written by python -m export.onnx")
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
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = parse(arguments)
    options = BuildOptions(
        batch=given.batch,
        workspace=given.workspace,
        level=given.optimization_level,
        timing_cache=given.timing_cache,
        version_compatible=given.version_compatible,
        hardware_compatible=given.hardware_compatible,
    )
    spec = read_spec(given.onnx)
    trt = open_tensorrt(given.flavor)
    output = choose_output(given.output, given.onnx, spec, trt.flavor)
    if given.timing_cache and given.timing_cache.resolve() in (given.onnx.resolve(), output.resolve()):
        raise InputError(f"--timing-cache {given.timing_cache}: that is the model; name a file of its own")
    facts = build_engine(trt, given.onnx, spec, output, options)
    log.info(
        "%s: %d of %d convolutions in %s, by %s; built in %.1f s for batch %s, %.1f MB",
        trt.title,
        facts["network"][spec.precision],
        facts["network"]["convolutions"],
        spec.precision,
        "network and engine inspector" if facts["inspector"] else "the types of the network",
        facts["build_seconds"],
        "/".join(map(str, facts["batch"].values())),
        output.stat().st_size / 1e6,
    )
    print(output)
    return 0


if __name__ == "__main__":
    cli.run(main)
