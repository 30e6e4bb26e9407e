"""Builds a TensorRT engine of proven precision from an ONNX file, and writes its manifest beside it."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
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
from export.trt.float_weights import parse_network
from export.trt.precision_check import check_inspected, check_network, inspected_types, network_precision
from export.trt.target import check_dla, dla_batch, use_dla, workspace_limit
from runtime import cli
from runtime.backends import signature
from runtime.backends.gpu import driver_version, find_gpu, platform_name
from runtime.backends.tensorrt.engine_info import runs_rtx
from runtime.backends.tensorrt.library import TensorRT, dtype_name, tensor_shape
from runtime.components import is_installed, load
from runtime.errors import InputError, MissingComponentError, ModelError
from runtime.files import check_writable, sha256, write_json
from runtime.manifest import Origin, atomic_pair, manifest_path, read_manifest, write_manifest
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)


def read_spec(path: Path) -> ModelSpec:
    """Reads the spec of an ONNX file from its metadata.

    Without the onnx package, as on a machine that only builds engines, it is read from the manifest beside the file.

    Raises:
        InputError: no such file.
        ModelError: not an ONNX file, or one without our metadata; or the manifest belongs to another file.
        MissingComponentError: neither the onnx package nor a manifest.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such ONNX file; make one with `python -m export.onnx`")
    if not is_installed("onnx"):
        return _spec_of_manifest(path)
    onnx = load("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's error type differs between its versions
        raise ModelError(f"{path}: not an ONNX file, or a damaged one; make it with `python -m export.onnx`") from error
    try:
        return ModelSpec.from_metadata({item.key: item.value for item in model.metadata_props})
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _spec_of_manifest(path: Path) -> ModelSpec:
    beside = manifest_path(path)
    if not beside.is_file():
        raise MissingComponentError(f"onnx is not installed; run `pip install onnx`, or put {beside.name} beside {path}")
    manifest = read_manifest(beside)
    if manifest.sha256 != sha256(path):
        raise ModelError(f"{path}: is not the file that {beside.name} describes; copy both again")
    return manifest.spec


def engine_name(spec: ModelSpec) -> str:
    """Returns the file name of a model's engine, such as `yolov3-asff-608-fp16.engine`."""
    height, width = spec.input_size
    size = str(height) if height == width else f"{height}x{width}"
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', spec.name).lstrip('.-') or 'model'}-{size}-{spec.precision}.engine"


def choose_output(path: Path | None, model: Path, spec: ModelSpec, flavor: str) -> Path:
    """Chooses the engine's path: `path`, or by default `engine_name` beside the ONNX file.

    Raises:
        InputError: the name does not end in .engine, or the default is taken by the engine of another model.
    """
    if path:
        cli.check_suffix(path, ".engine")
        cli.check_keeps(path, model)
        return path
    output = model.parent / engine_name(spec)
    if output.exists() and not _is_made_from(output, model, flavor):
        raise InputError(f"{output} exists and was made from another file or by another flavor; choose a name with --output")
    return output


def _is_made_from(engine: Path, model: Path, flavor: str) -> bool:
    """Tells whether an engine's manifest names this ONNX file, which may have changed since, and this flavor."""
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
    """Builds the engine of an ONNX file and proves its precision; only then writes it and its manifest.

    Args:
        trt: the library to build with.
        model: the ONNX file.
        spec: the file's own spec, see `read_spec`.
        output: the engine to write.
        options: see `BuildOptions`.

    Returns:
        What the manifest says of the engine (`details.engine`).

    Raises:
        InputError: the file, an option or the output cannot be used.
        ModelError: the network is not what the spec says, or the library cannot build it.
        CheckFailed: the file or the engine does not have the precision that the spec claims.
        MissingComponentError: the library does not start on this machine.
    """
    settings = options.settings()
    options = usable_options(trt, options)
    options = dataclasses.replace(options, workspace=workspace_limit(options.workspace, find_gpu()))
    check_writable(output)
    origin = Origin.of("onnx", model, output)
    builder = trt.create_builder()
    if options.dla is not None:
        check_dla(trt, builder, options.dla, spec.precision)
        options = dataclasses.replace(options, batch=dla_batch(options.batch))
    network, parser, has_float_weights = parse_network(trt, builder, model, spec.precision)
    batch = batch_profile(check_signature(model, network, spec), options.batch)
    precision = network_precision(trt, network)
    check_network(model, precision, spec.precision, _left_out(model, origin.sha256))
    config = configure(trt, builder, network, precision, batch, options, keep_nan=spec.top_k > 0)
    gpu_layers = None if options.dla is None else use_dla(trt, network, config, options.dla)
    if options.timing_cache:
        check_writable(options.timing_cache)
        load_timing_cache(trt, config, options.timing_cache)
    start = time.perf_counter()
    plan = build_plan(trt, builder, network, config)
    seconds = time.perf_counter() - start
    del parser  # it owns the weights until here
    layers = _inspect(trt, plan, spec.precision, len(getattr(precision, spec.precision)), options)
    details = {
        **_library_details(trt),
        "batch": dict(zip(("min", "opt", "max"), batch)),
        "build_seconds": round(seconds, 2),
        "optimization_level": int(config.builder_optimization_level),
        "workspace_gib": options.workspace,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "same_compute_capability": options.same_compute_capability,
        "dla_core": options.dla,
        "gpu_layers": gpu_layers,
        "tf32": options.tf32,
        "strongly_typed": trt.is_typed,
        "float_weights": has_float_weights,
        "network": precision.summary(),
        "inspector": None if layers is None else inspected_types(layers),
    }
    _write(output, plan, spec, origin, {"settings": settings, "engine": details})
    if layers is not None:
        write_json(output.with_name(f"{output.name}.layers.json"), layers)
    if options.timing_cache:
        save_timing_cache(config, options.timing_cache)
    return details


def _library_details(trt: TensorRT) -> dict[str, Any]:
    gpu = find_gpu()
    return {
        "flavour": trt.flavor,
        "version": trt.version,
        "platform": platform_name(),
        "cuda_driver": driver_version(),
        "gpu": gpu.name if gpu else None,
        "compute_capability": gpu.compute_capability if gpu else None,
        "multiprocessors": gpu.multiprocessors if gpu else None,
    }


def _left_out(model: Path, model_sha256: str) -> int:
    """Returns how many convolutions calibration did not quantize, by the ONNX file's manifest; 0 where none tells."""
    try:
        manifest = read_manifest(manifest_path(model))
    except InputError:
        return 0
    calibration = manifest.details.get("calibration")
    if manifest.sha256 != model_sha256 or not isinstance(calibration, dict):
        return 0
    return sum(len(calibration.get(name, ())) for name in ("float_layers", "half_layers"))


def _inspect(trt: TensorRT, plan: bytes, claimed: str, expected: int, options: BuildOptions) -> list[Any] | None:
    """Checks the precision of a plan with the engine inspector, which needs a GPU that can load it.

    Returns:
        The engine's layers, as the inspector describes them; None without such a GPU.

    Raises:
        CheckFailed: see `check_inspected`.
    """
    gpu = find_gpu()
    if gpu is None:
        return None
    if trt.flavor == "rtx" and not runs_rtx(gpu):
        log.warning("%s does not run on %s; the engine was not inspected", trt.title, gpu.name)
        return None
    layers = trt.inspect(trt.deserialize(plan, version_compatible=options.version_compatible, dla_core=options.dla))
    if options.dla is None:  # else most convolutions are within one layer, of which the inspector says nothing
        check_inspected(trt, inspected_types(layers), claimed, expected)
    return layers


def _write(output: Path, plan: bytes, spec: ModelSpec, origin: Origin, details: Mapping[str, Any]) -> None:
    with atomic_pair(output) as written:
        written.write_bytes(plan)
        write_manifest(written, spec, [origin], details)
