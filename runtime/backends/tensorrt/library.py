"""TensorRT 8.6, 10, 11, its lean runtime and TensorRT-RTX behind one class.

The libraries differ in their names. A feature is detected by its name in the module, never by the version number.
"""

from __future__ import annotations

import functools
import json
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Optional, Protocol, TypeVar

from runtime.backends.gpu import find_gpu
from runtime.backends.tensorrt.messages import describe, make_logger
from runtime.components import import_library, is_installed, reason
from runtime.errors import MissingComponentError, ModelError
from runtime.files import PathLike

log = logging.getLogger(__name__)

FLAVORS = ("tensorrt", "rtx")
_LEAN = "lean"  # no flavor to build with: it runs version-compatible engines of the flavor tensorrt
_MODULES = {
    "tensorrt": ("tensorrt",),
    "rtx": ("tensorrt_rtx",),
    _LEAN: ("tensorrt_lean", "tensorrt_lean_bindings"),  # the package, or the part of it that is no more than a wheel
}
_TITLES = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX", _LEAN: "TensorRT lean runtime"}
_REMEDIES = {
    "tensorrt": "run `pip install tensorrt` on a machine with an NVIDIA GPU and driver",
    _LEAN: "`pip install tensorrt-lean`, which is smaller and enough for this engine",
    "rtx": "run `pip install tensorrt-rtx`, which builds engines without a GPU too",
}
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT8": "int8", "INT32": "int32", "INT64": "int64"}
_KEPT_LINES, _KEPT_CHARACTERS = 3, 400

T = TypeVar("T")


class BuildObserver(Protocol):
    """Receives the progress of a build, from several threads; it must be fast and must not raise."""

    def started(self, phase: str, parent: str, steps: int) -> None:
        """Notes that a phase of `steps` steps begins, within the phase `parent` (empty: the whole build)."""

    def stepped(self, phase: str, step: int) -> bool:
        """Notes that a phase completed a step, counted from 0; returns False to cancel the build."""

    def finished(self, phase: str) -> None:
        """Notes that a phase ended."""


class TensorRT:
    """A TensorRT library with its log.

    Open it with `open_tensorrt`: a process has one logger per library.

    Attributes:
        flavor: `tensorrt`, `rtx` or `lean`.
        version: of the library.
        title: name and version, for messages.
        api: the library's module, for names that all versions have.
    """

    def __init__(self, flavor: str, api: Any) -> None:
        self.flavor, self.api = flavor, api
        self.version = str(api.__version__)
        self.title = f"{_TITLES[flavor]} {self.version}"
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._logger = make_logger(api, self._errors)

    @property
    def is_typed(self) -> bool:
        """Whether an engine has to keep the dtypes of its network; in TensorRT 8.6 they are hints."""
        return hasattr(self._network_flags, "STRONGLY_TYPED") or not hasattr(self.api.BuilderFlag, "FP16")

    @property
    def shares_profiles(self) -> bool:
        """Whether several contexts may use one optimization profile; in TensorRT 8.6 each needs its own."""
        return hasattr(self.api, "IProgressMonitor")  # which came with the same version, 10.0

    @property
    def _network_flags(self) -> Any:
        return getattr(self.api, "NetworkDefinitionCreationFlag", None)

    def checked(self, what: str, call: Callable[[], Optional[T]]) -> T:
        """Returns the result of `call`, or raises where it is None, which is how the library reports failure.

        Args:
            what: begins the message.
            call: of the library.

        Raises:
            ModelError: with `what` and the last errors in the log.
        """
        self._errors.clear()
        result = call()
        if result is None:
            raise ModelError(f"{what}: {self.complaint()}")
        return result

    def complaint(self) -> str:
        """Returns the last errors in the library's log, on one line."""
        lines = (" ".join(line.split())[:_KEPT_CHARACTERS] for line in self._errors)
        return " | ".join(lines) or f"{self.title} gives no reason"

    def create_builder(self) -> Any:
        """Creates an `IBuilder`.

        Raises:
            MissingComponentError: the library does not start here, for example without a driver.
        """
        try:
            return self.checked("builder", lambda: self.api.Builder(self._logger))
        except (TypeError, ModelError) as error:  # a missing driver shows as a TypeError of the bindings
            raise MissingComponentError(f"{self.title} does not start here ({self.complaint()}); check `nvidia-smi`") from error

    def create_network(self, builder: Any) -> Any:
        """Creates an empty network, with explicit batch and strongly typed where the library has those flags."""
        kinds = self._network_flags
        flags = [getattr(kinds, name) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(kinds, name)]
        return builder.create_network(sum(1 << int(flag) for flag in flags))

    def parse_onnx(self, network: Any, path: PathLike) -> Any:
        """Reads an ONNX file into `network`.

        Returns:
            The parser. Keep it as long as the network: it owns the weights.

        Raises:
            ModelError: with the node that cannot be read, and the remedy.
        """
        self._errors.clear()
        parser = self.api.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(path)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            reason = describe(errors[0]) if errors else self.complaint()
            raise ModelError(
                f"{path}: {self.title} cannot read {reason}; export it again with `python -m export.onnx`,"
                " which writes only operators that TensorRT has"
            )
        return parser

    def create_monitor(self, observer: BuildObserver) -> Any:
        """Creates an `IProgressMonitor` for `observer`, None if the library has none; keep it until the build ends."""
        if not hasattr(self.api, "IProgressMonitor"):
            return None
        base: Any = self.api.IProgressMonitor

        class Monitor(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)  # the bindings want their own constructor called by name

            def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
                observer.started(phase_name, parent_phase or "", num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return observer.stepped(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                observer.finished(phase_name)

        return Monitor()

    def deserialize(self, plan: bytes, *, version_compatible: bool = False, dla_core: Optional[int] = None) -> Any:
        """Creates an `ICudaEngine` from a plan.

        Args:
            plan: content of an engine file.
            version_compatible: whether the plan was built so, and thus carries code of its own.
            dla_core: the DLA core that runs what it can, if the plan was built for one.

        Raises:
            ModelError: damaged, or of another version or GPU; with the reason from the library's log.
            MissingComponentError: no GPU, or not that DLA core.
        """
        if not find_gpu():  # without a driver the lean runtime ends the process here
            raise MissingComponentError(f"{self.title} loads no engine without an NVIDIA GPU and driver; check `nvidia-smi`")
        runtime = self.checked("runtime", lambda: self.api.Runtime(self._logger))
        if version_compatible:
            runtime.engine_host_code_allowed = True
        if dla_core is not None:
            if dla_core >= runtime.num_DLA_cores:
                raise MissingComponentError(f"built for DLA core {dla_core}, {self.title} finds {runtime.num_DLA_cores} here")
            runtime.DLA_core = dla_core
        return self.checked(f"not an engine for {self.title} here", lambda: runtime.deserialize_cuda_engine(plan))

    def create_context(self, engine: Any, config: Any) -> Any:
        """Creates an `IExecutionContext`, which one thread at a time may use.

        Args:
            engine: from `deserialize`.
            config: TensorRT-RTX's `IRuntimeConfig`, see `runtime_config`; None in other libraries.

        Raises:
            ModelError: with the library's reason, most often too little memory.
        """
        arguments = () if config is None else (config,)
        context = self.checked("execution context", lambda: engine.create_execution_context(*arguments))
        context.nvtx_verbosity = self.api.ProfilingVerbosity.NONE  # the detail that the inspector needs slows every run
        return context

    def inspect(self, engine: Any) -> list[Any]:
        """Returns the engine inspector's layers: mappings if built with detailed profiling, otherwise names."""
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(self.api.LayerInformationFormat.JSON)
        layers: list[Any] = json.loads(text, strict=False).get("Layers", [])
        return layers


def open_tensorrt(flavor: str = "auto") -> TensorRT:
    """Imports a TensorRT library that works on this machine.

    Args:
        flavor: `tensorrt`, `rtx`, or `auto`: `tensorrt` if it is installed and there is a GPU, otherwise `rtx`.

    Raises:
        MissingComponentError: not installed, or TensorRT without a GPU; with the remedy.
    """
    if flavor != "auto":
        library = load_tensorrt(flavor)
        if flavor == "tensorrt" and not find_gpu():
            raise MissingComponentError(
                f"{library.title} needs an NVIDIA GPU and driver, and there is none here; the flavor rtx builds without"
            )
        return library
    for candidate in FLAVORS:
        try:
            return open_tensorrt(candidate)
        except MissingComponentError as error:
            log.debug("%s", error)
    raise MissingComponentError(f"no TensorRT here: {'; or '.join(_REMEDIES[name] for name in FLAVORS)}")


@functools.lru_cache
def load_tensorrt(flavor: str) -> TensorRT:
    """Imports a TensorRT library, with or without a GPU.

    Raises:
        MissingComponentError: not installed, with the remedy.
    """
    try:
        return TensorRT(flavor, _import_first(_MODULES[flavor]))
    except Exception as error:  # the packages fail in several ways
        raise MissingComponentError(f"{_TITLES[flavor]} cannot be imported ({reason(error)}); {_REMEDIES[flavor]}") from error


def load_runtime(flavor: str, *, version_compatible: bool) -> TensorRT:
    """Imports a library that runs an engine: the one that built it or, where that is absent, the lean runtime.

    Args:
        flavor: of the engine.
        version_compatible: whether it was built so, which the lean runtime needs.

    Raises:
        MissingComponentError: not installed, with the remedies.
    """
    try:
        return load_tensorrt(flavor)
    except MissingComponentError as error:
        if flavor != "tensorrt":
            raise
        full = error
    if not version_compatible:
        hint = ", or build the engine with --version-compatible for the lean runtime" if _is_lean_installed() else ""
        raise MissingComponentError(f"{full}{hint}") from full
    try:
        return load_tensorrt(_LEAN)
    except MissingComponentError as error:
        log.debug("%s", error)
        raise MissingComponentError(f"{full}, or {_REMEDIES[_LEAN]}") from full


def _is_lean_installed() -> bool:
    return any(is_installed(name) for name in _MODULES[_LEAN])


def _import_first(names: tuple[str, ...]) -> Any:
    """Imports the first of several modules that is installed."""
    *others, last = names
    return import_library(next((name for name in others if is_installed(name)), last))


def dtype_name(dtype: Any) -> str:
    """Returns numpy's name of a `DataType`, such as `float32` for FLOAT; the library's own where numpy has none."""
    name = str(dtype.name)
    return _DTYPES.get(name, name)


def tensor_shape(dims: Any) -> tuple[Optional[int], ...]:
    """Returns a `Dims` with None for each side that is free, which TensorRT writes as -1."""
    return tuple(None if side == -1 else int(side) for side in dims)
