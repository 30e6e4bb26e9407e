"""From a parsed network to a plan: builder options, the batch profile, progress, and canceling."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from export.trt.precision_check import NetworkPrecision, layer_inputs, layer_outputs, network_layers
from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import InputError
from runtime.files import atomic_write

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine; what stays None is left to the library.

    Attributes:
        batch: smallest, most frequent and largest batch size, of a file with a dynamic batch.
        workspace: GiB that a layer may use for scratch. level: 0-5, how long to search for fast kernels.
        timing_cache: file of kernel timings to read and extend.
        version_compatible: loads in later versions too. hardware_compatible: on GPUs from Ampere on, not this one's kind alone.
    """

    batch: tuple[int, int, int] | None = None
    workspace: float | None = None
    level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    def settings(self) -> dict[str, Any]:
        """Returns the settings that an engine depends on, for its manifest."""
        names = ("batch", "workspace", "level", "version_compatible", "hardware_compatible")
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def usable_options(trt: TensorRT, options: BuildOptions) -> BuildOptions:
    """What of `options` applies to this library; what is left out is said.

    Raises:
        InputError: an engine was asked for that the library cannot make.
    """
    if trt.flavor != "rtx":
        return options
    asked = {"--version-compatible": options.version_compatible, "--hardware-compatible": options.hardware_compatible}
    for flag in (flag for flag, wanted in asked.items() if wanted):
        raise InputError(
            f"{flag}: {trt.title} cannot make such engines; leave it out (its engines run on all GPUs from Ampere on),"
            " or use --flavor tensorrt"
        )
    if options.timing_cache:
        log.info("%s has no timing cache; %s is neither read nor written", trt.title, options.timing_cache)
    return dataclasses.replace(options, timing_cache=None)


def batch_profile(fixed: int | None, asked: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The (smallest, most frequent, largest) batch size of the engine: the file's own if that is fixed.

    Raises:
        InputError: another one was asked for than the file has.
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
) -> Any:
    """An `IBuilderConfig` for `network`.

    Raises:
        InputError: an option the library refuses, or a timing cache that is not one.
    """
    api, config = trt.api, builder.create_builder_config()
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # without it the inspector shows names alone
    if options.workspace:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.version_compatible:
        config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = api.HardwareCompatibilityLevel.AMPERE_PLUS
    if not trt.is_typed:
        _bind_types(api, config, network, precision)
    images = network.get_input(0)
    if images.shape[0] == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, *((size, *tuple(images.shape)[1:]) for size in batch))
        config.add_optimization_profile(profile)
    return config


def _bind_types(api: Any, config: Any, network: Any, precision: NetworkPrecision) -> None:
    """Hold TensorRT 8.6, which chooses types itself, to the network's own.

    Reduced precision is allowed where the network has it, and layers that are float throughout are pinned to float, so that
    the islands of an FP16 file (sampling, the last additions) stay what they are.
    """
    flags = api.BuilderFlag
    if precision.int8_tensors:
        config.set_flag(flags.INT8)
    if not precision.half_tensors:
        return
    config.set_flag(flags.FP16)
    config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
    pinned = [getattr(api.LayerType, kind) for kind in _COMPUTING]
    for layer in network_layers(network):
        tensors = [tensor for tensor in (*layer_inputs(layer)[:1], *layer_outputs(layer)) if tensor is not None]
        floats = {tensor.dtype for tensor in tensors} - {api.int32, api.bool}  # those of shapes, places, conditions
        if layer.type in pinned and layer.name not in precision.int8 and floats == {api.float32}:
            layer.precision = api.float32
            for index, tensor in enumerate(layer_outputs(layer)):
                if tensor.dtype == api.float32:
                    layer.set_output_type(index, api.float32)


# Layers that do arithmetic, and those that move what half precision does not hold (candidates with their places); constants,
# shapes, casts and Q/DQ carry no precision of their own.
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
    """Give `config` the timings in a file, or an empty cache if there is no such file yet.

    Raises:
        InputError: the file is no timing cache of this version and GPU; it is left alone.
    """
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise InputError(
            f"--timing-cache {path}: not a timing cache of {trt.title} and this GPU ({trt.complaint()});"
            " name another file, or delete this one if it is an old cache"
        )


def save_timing_cache(config: Any, path: Path) -> None:
    """Write the timings known after a build, those read before among them."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))


class BuildProgress:
    """Follows the builder's nested phases. It is told by the builder's threads and read by another; see `BuildObserver`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}  # those under way, outermost first
        self._canceled = False

    def started(self, phase: str, parent: str, steps: int) -> None:
        """See `BuildObserver.started`."""
        with self._lock:
            self._phases[phase] = _Phase(parent, max(steps, 1))

    def stepped(self, phase: str, step: int) -> bool:
        """See `BuildObserver.stepped`."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = step + 1
            return not self._canceled

    def finished(self, phase: str) -> None:
        """See `BuildObserver.finished`."""
        with self._lock:
            self._phases.pop(phase, None)

    def cancel(self) -> None:
        """Make the builder stop at its next step."""
        self._canceled = True

    def read(self) -> tuple[str, float]:
        """The innermost phase under way, and the share of the whole build that is done, in [0, 1]."""
        with self._lock:
            return next(reversed(self._phases), ""), min(self._share(""), 1.0)

    def _share(self, parent: str) -> float:
        """The share done of what runs within `parent`."""
        return sum(
            min(phase.done + self._share(name), phase.steps) / phase.steps
            for name, phase in self._phases.items()
            if phase.parent == parent
        )


@dataclass
class _Phase:
    parent: str
    steps: int
    done: int = 0


def build_plan(trt: TensorRT, builder: Any, network: Any, config: Any) -> bytes:
    """Build; shows a progress bar on a terminal. Ctrl-C stops the builder (TensorRT 8.6: once it is done) and is raised.

    Raises:
        ModelError: the library cannot build this network; its log says why.
    """
    progress = BuildProgress()
    monitor = trt.create_monitor(progress)
    if monitor:
        config.progress_monitor = monitor
    else:
        log.info("%s reports no progress, and Ctrl-C waits for the end of the build", trt.title)

    def work() -> bytes:
        plan = trt.checked(f"{trt.title} cannot build this network", lambda: builder.build_serialized_network(network, config))
        return bytes(memoryview(plan))

    return _in_background(work, progress)


def _in_background(work: Callable[[], bytes], progress: BuildProgress) -> bytes:
    """Run `work` in a thread: Python sees Ctrl-C only where it runs itself, and not within the builder."""
    outcome: list[bytes | BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # raised below, where it is waited for
            outcome.append(error)
        done.set()

    threading.Thread(target=run, name="engine builder").start()
    with tqdm(
        total=100, unit="%", disable=None, leave=False, bar_format="{desc:32.32}{percentage:3.0f}%|{bar}| {elapsed}"
    ) as bar:
        try:
            # An event rather than Thread.join: Python 3.11 takes a thread for ended whose join was interrupted.
            while not done.wait(0.1):
                phase, share = progress.read()
                bar.set_description_str(phase, refresh=False)
                bar.update(max(0, int(100 * share) - bar.n))
        except KeyboardInterrupt:
            progress.cancel()
            done.wait()
            raise
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result
