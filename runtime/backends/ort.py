"""ONNX Runtime backend for CPUs and NVIDIA GPUs."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.backends.onnx_base import OnnxBackend, telling_line
from runtime.backends.signature import INPUT_NAME, Port
from runtime.components import load
from runtime.errors import InputError, MissingComponentError, ModelError
from runtime.files import PathLike

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# Without this CUDA rounds the inputs of float32 convolutions to TF32's 10 bits.
_CUDA_OPTIONS = (_CUDA, {"use_tf32": "0"})
PROVIDERS: dict[str, list[Any]] = {
    "cpu": [_CPU],
    "cuda": [_CUDA_OPTIONS, _CPU],
    "tensorrt": [_TENSORRT, _CUDA_OPTIONS, _CPU],
}
"""ONNX Runtime's providers by the choices of `provider`: each gets the operators that those before it lack."""
_FATAL = 4  # the highest severity: nothing below it is written to stderr
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OrtBackend(OnnxBackend):
    """Runs an exported ONNX file in ONNX Runtime. May be used by several threads at once.

    Session options but `threads` are the defaults; docs/benchmarks.md has measurements of others.

    Args:
        path: of the file.
        provider: `cpu`, `cuda` or `tensorrt`, without fallback to a slower one.
        threads: of one run on the CPU; all cores by default.

    Raises:
        InputError: no such provider.
        MissingComponentError: onnxruntime is not installed, it lacks the provider, or the provider does not start here.
        ModelError: not an ONNX file, damaged, without a spec in its metadata, or not as its spec says.
    """

    def __init__(self, path: PathLike, provider: str = "cpu", threads: Optional[int] = None) -> None:
        if provider not in PROVIDERS:
            raise InputError(f"provider: expected one of {', '.join(PROVIDERS)}, got {provider!r}")
        onnxruntime = load_onnxruntime()
        wanted = PROVIDERS[provider]
        first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
        available = onnxruntime.get_available_providers()
        if first not in available:
            raise MissingComponentError(
                f"this onnxruntime has no {first} (it has {', '.join(available)}); run `pip install onnxruntime-gpu`,"
                " or use the CPU with --backend onnxruntime"
            )
        session = _open(path, wanted, threads)
        started = session.get_providers()
        if started[0] != first:
            raise MissingComponentError(
                f"{first} does not start on this machine (onnxruntime fell back to {started[0]}); look at the GPU, its driver"
                " and CUDA's libraries, or use the CPU with --backend onnxruntime"
            )

        def run(names: Sequence[str], images: NDArray[Any]) -> list[NDArray[np.float32]]:
            found: list[NDArray[np.float32]] = session.run(list(names), {INPUT_NAME: images})
            return found

        try:
            metadata = session.get_modelmeta().custom_metadata_map
            inputs, outputs = ([_port(item) for item in items] for items in (session.get_inputs(), session.get_outputs()))
        except UnicodeDecodeError as error:
            raise ModelError(f"{path}: not a usable ONNX model (a text in it is not UTF-8)") from error
        compute = run if provider == "cpu" else BoundRuns(onnxruntime, session, outputs).run
        super().__init__(path, f"ONNX Runtime {onnxruntime.__version__}, {first}", metadata, inputs, outputs, compute)


class BoundRuns:
    """Runs a session with inputs in reused device memory and outputs copied straight to new arrays.

    Threads that run at once have an input each.

    Args:
        onnxruntime: the module.
        session: an `InferenceSession`.
        outputs: of the session.

    Attributes:
        device: where the session computes, by ONNX Runtime's name.
    """

    device = "cuda"

    def __init__(self, onnxruntime: Any, session: Any, outputs: Sequence[Port]) -> None:
        self._onnxruntime, self._session = onnxruntime, session
        self._shapes: dict[str, Any] = {item.name: item.shape[1:] for item in outputs}  # checked by then: all sides are known
        self._idle: dict[tuple[int, ...], deque[Any]] = defaultdict(deque)  # by shape

    def run(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Returns the values of the named outputs for a batch."""
        images = np.ascontiguousarray(images)
        idle = self._idle[images.shape]
        bound = self._input(idle, images)
        found = [np.empty((len(images), *self._shapes[name]), np.float32) for name in names]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT_NAME, bound)
        for name, array in zip(names, found):
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.synchronize_inputs()  # the session's stream does not wait for copies on another one
        self._session.run_with_iobinding(binding)
        idle.append(bound)  # not reached by one whose run failed
        return found

    def _input(self, idle: deque[Any], images: NDArray[Any]) -> Any:
        """Copies the images to the device: to memory of an earlier batch of this shape, or to new memory."""
        try:
            bound = idle.pop()
        except IndexError:
            return self._onnxruntime.OrtValue.ortvalue_from_numpy(images, self.device, 0)
        bound.update_inplace(images)
        return bound


def load_onnxruntime() -> Any:
    """Imports ONNX Runtime; what it has to say comes in its exceptions, not on stderr too."""
    onnxruntime = load("onnxruntime")
    onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime


def open_session(
    path: PathLike,
    model: Optional[bytes] = None,
    providers: Sequence[Any] = (_CPU,),
    *,
    optimized: bool = True,
    threads: Optional[int] = None,
) -> Any:
    """Opens a session.

    Args:
        path: of the model, for messages where `model` is given.
        model: its bytes; None to read the file.
        providers: ONNX Runtime's, the first choice first.
        optimized: whether the graph may be changed.
        threads: of one run on the CPU; all cores by default.

    Raises:
        ModelError: not a model that it can run.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads or 0
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path) if model is None else model, options, providers=list(providers))
    except Exception as error:  # onnxruntime raises a different type for every way a file can be wrong
        raise ModelError(f"{path}: not a usable ONNX model ({telling_line(error)})") from error


def run_session(session: Any, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Runs a session; raises ModelError whatever goes wrong."""
    try:
        found: list[NDArray[Any]] = session.run(list(names), dict(inputs))
    except Exception as error:  # onnxruntime raises a different type for every way a run can fail
        raise ModelError(f"the model failed to run ({telling_line(error)})") from error
    return found


def _open(path: PathLike, providers: Sequence[Any], threads: Optional[int]) -> Any:
    session = open_session(path, providers=providers, threads=threads)
    session.disable_fallback()  # or a run that fails on the GPU silently moves to the CPU for good
    return session


def _port(item: Any) -> Port:
    return Port(item.name, _TYPES.get(item.type, item.type), tuple(s if isinstance(s, int) else None for s in item.shape))
