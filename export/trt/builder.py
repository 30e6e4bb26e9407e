"""Configures the builder (options, batch profile, precision, timing cache) and builds a plan."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.trt.build_progress import BuildProgress, run_with_progress
from export.trt.precision_check import NetworkPrecision, layer_inputs, layer_outputs, network_layers, tensor_types
from export.trt.target import check_hardware_level
from runtime.backends.tensorrt.engine_info import RTX_GPUS
from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import InputError
from runtime.files import LARGEST_MODEL, atomic_write, read_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """Options of an engine build; None leaves a choice to the library.

    Attributes:
        batch: smallest, most frequent and largest batch size, for a file with a dynamic batch.
        workspace: scratch memory that a layer may use, in GiB.
        level: 0-5, how long to search for fast kernels.
        timing_cache: file of kernel timings to read and extend.
        version_compatible: whether later versions of the library can load the engine.
        hardware_compatible: whether all GPUs from Ampere on can run it, not only the kind it is built on.
        same_compute_capability: whether all GPUs of the same compute capability can.
        dla: the DLA core that runs all layers it can.
        tf32: whether float32 convolutions may compute in TF32, which has the 10 mantissa bits of FP16.
    """

    batch: tuple[int, int, int] | None = None
    workspace: float | None = None
    level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    same_compute_capability: bool = False
    dla: int | None = None
    tf32: bool = False

    def settings(self) -> dict[str, Any]:
        """Returns the settings that an engine depends on, for its manifest."""
        names = ("batch", "workspace", "level", "version_compatible", "hardware_compatible", "same_compute_capability", "dla")
        values = {name: getattr(self, name) for name in (*names, "tf32")}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def usable_options(trt: TensorRT, options: BuildOptions) -> BuildOptions:
    """Returns the options that this library has; logs which one it leaves out.

    Raises:
        InputError: the options ask for an engine that the library cannot make.
    """
    if options.hardware_compatible and options.same_compute_capability:
        raise InputError("--hardware-compatible and --same-compute-capability exclude each other; give one of them")
    if trt.flavor != "rtx":
        if options.same_compute_capability:
            check_hardware_level(trt, "SAME_COMPUTE_CAPABILITY")
        return options
    asked = {
        "--version-compatible": options.version_compatible,
        "--hardware-compatible": options.hardware_compatible,
        "--same-compute-capability": options.same_compute_capability,
    }
    for flag in (flag for flag, wanted in asked.items() if wanted):
        raise InputError(
            f"{flag}: {trt.title} cannot make such engines; leave it out (they run on {RTX_GPUS}), or use --flavor tensorrt"
        )
    if options.timing_cache:
        log.info("%s has no timing cache; %s is neither read nor written", trt.title, options.timing_cache)
    return dataclasses.replace(options, timing_cache=None)


def batch_profile(fixed: int | None, asked: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Chooses the (smallest, most frequent, largest) batch size of the engine.

    Args:
        fixed: the file's batch size; None if it is dynamic.
        asked: the sizes asked for; None for the default.

    Raises:
        InputError: the sizes asked for differ from the file's fixed one.
    """
    if fixed is None:
        return asked or (1, 1, 8)
    if asked and set(asked) != {fixed}:
        wanted = ",".join(map(str, asked))
        raise InputError(
            f"--batch {wanted}: the ONNX file has a fixed batch of {fixed}; leave --batch out,"
            " or export with `python -m export.onnx --batch dynamic`"
        )
    return fixed, fixed, fixed


def configure(
    trt: TensorRT,
    builder: Any,
    network: Any,
    precision: NetworkPrecision,
    batch: tuple[int, int, int],
    options: BuildOptions,
    *,
    keep_nan: bool = False,
) -> Any:
    """Creates the `IBuilderConfig` for a network.

    Args:
        trt: the library.
        builder: its `IBuilder`.
        network: the parsed network; TensorRT 8.6 gets the types of its layers pinned.
        precision: of that network.
        batch: smallest, most frequent and largest batch size.
        options: the other options, see `usable_options`.
        keep_nan: whether NaN must come out as NaN; else the library may optimize as if there were none.
    """
    api, config = trt.api, builder.create_builder_config()
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # otherwise the inspector shows only names
    if options.workspace:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.version_compatible:
        config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = api.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.same_compute_capability:
        config.hardware_compatibility_level = api.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if not options.tf32:
        config.clear_flag(api.BuilderFlag.TF32)  # the library sets it by default
    if keep_nan and hasattr(api.BuilderFlag, "STRICT_NANS"):
        config.set_flag(api.BuilderFlag.STRICT_NANS)
    if not trt.is_typed:
        _bind_types(trt, config, network, precision)
    images = network.get_input(0)
    if images.shape[0] == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, *((size, *tuple(images.shape)[1:]) for size in batch))
        config.add_optimization_profile(profile)
    return config


def _bind_types(trt: TensorRT, config: Any, network: Any, precision: NetworkPrecision) -> None:
    """Binds TensorRT 8.6, which chooses types itself, to the types of the network.

    Reduced precision is allowed if the network has it. Layers with only float32 tensors are pinned to float32, so that the
    float32 parts of an FP16 file (sampling, the last additions) stay float32. Those between Dequantize and Quantize layers are
    free, so that TensorRT can fuse them into int8 kernels.
    """
    api, flags, types = trt.api, trt.api.BuilderFlag, tensor_types(trt, network)
    if precision.int8_tensors:
        config.set_flag(flags.INT8)
    if not precision.fp16_tensors:
        return
    config.set_flag(flags.FP16)
    config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
    pinned = [getattr(api.LayerType, kind) for kind in _COMPUTING]
    free = _between_pairs(api.LayerType, list(network_layers(network)))
    for layer in network_layers(network):
        tensors = [tensor for tensor in (*layer_inputs(layer)[:1], *layer_outputs(layer)) if tensor is not None]
        floats = {types[tensor.name] for tensor in tensors} - {"INT32", "BOOL"}  # shapes, anchor indices and conditions
        if layer.type in pinned and layer.name not in free and floats == {"FLOAT"}:
            layer.precision = api.float32
            for index, tensor in enumerate(layer_outputs(layer)):
                if types[tensor.name] == "FLOAT":
                    layer.set_output_type(index, api.float32)


_Ports = Callable[[Any], list[Any]]


def _between_pairs(kinds: Any, layers: Sequence[Any]) -> set[str]:
    """Names the layers that lie on a way from a Dequantize to a Quantize layer without a cast, in a network in order."""
    between = {kinds.QUANTIZE, kinds.DEQUANTIZE, kinds.CAST}

    def reached(start: Any, ordered: Iterable[Any], takes: _Ports, gives: _Ports) -> set[str]:
        names: set[str] = set()
        tensors: set[str] = set()
        for layer in ordered:
            met = any(tensor is not None and tensor.name in tensors for tensor in takes(layer))
            if met and layer.type not in between:
                names.add(layer.name)
            if layer.type == start or (met and layer.type not in between):
                tensors.update(tensor.name for tensor in gives(layer) if tensor is not None)
        return names

    after = reached(kinds.DEQUANTIZE, layers, layer_inputs, layer_outputs)
    return after & reached(kinds.QUANTIZE, reversed(layers), layer_outputs, layer_inputs)


# Layers that do arithmetic, and those that move values beyond FP16 (candidates with their anchor indices). Constants, shapes,
# casts and Q/DQ layers have no precision of their own.
_COMPUTING = (
    "ACTIVATION",
    "CONCATENATION",
    "CONVOLUTION",
    "ELEMENTWISE",
    "GATHER",
    "GRID_SAMPLE",
    "MATRIX_MULTIPLY",
    "POOLING",
    "REDUCE",
    "RESIZE",
    "SCALE",
    "SELECT",
    "SHUFFLE",
    "SLICE",
    "SOFTMAX",
    "TOPK",
    "UNARY",
)


def load_timing_cache(trt: TensorRT, config: Any, path: Path) -> None:
    """Gives `config` the timings in a file, or an empty cache if there is no such file yet.

    Raises:
        InputError: the file is not a timing cache of this version and GPU; it is not changed.
    """
    content = read_bytes(path, LARGEST_MODEL) if path.exists() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise InputError(
            f"--timing-cache {path}: not a timing cache of {trt.title} and this GPU ({trt.complaint()});"
            " name another file, or delete this one if it is an old cache"
        )


def save_timing_cache(config: Any, path: Path) -> None:
    """Writes the timings of a build, and those read before it."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))


def build_plan(trt: TensorRT, builder: Any, network: Any, config: Any) -> bytes:
    """Builds the plan of a network, with a progress bar on a terminal.

    Raises:
        ModelError: the library cannot build this network; the message holds its reason.
        KeyboardInterrupt: on Ctrl-C, once the builder has stopped (TensorRT 8.6: once the build is done).
    """
    progress = BuildProgress()
    monitor = trt.create_monitor(progress)
    if monitor:
        config.progress_monitor = monitor
    else:
        log.info("%s reports no progress; Ctrl-C takes effect at the end of the build", trt.title)

    def build() -> bytes:
        plan = trt.checked(f"{trt.title} cannot build this network", lambda: builder.build_serialized_network(network, config))
        return bytes(memoryview(plan))

    return run_with_progress(build, progress)
