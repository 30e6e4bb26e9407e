"""Which backend runs a model file."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from runtime.backends.base import Backend
from runtime.backends.gpu import find_gpu
from runtime.backends.onnx_base import OnnxBackend
from runtime.errors import InputError
from runtime.files import PathLike

log = logging.getLogger(__name__)

BACKENDS = ("auto", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "openvino-bf16")
"""What `--backend` may be: a library, and where it computes or in what if that is not the CPU and float32."""


def open_backend(path: PathLike, backend: str = "auto") -> Backend:
    """Open a model file, and log what it runs in and why.

    Args:
        path: an exported `.onnx` file, or an `.engine`, which TensorRT runs.
        backend: one of `BACKENDS`. `auto`: ONNX Runtime, on an NVIDIA GPU where there is one and the library is built for it;
            OpenVINO where ONNX Runtime is not installed. Any other is taken at its word: nothing else takes its place.

    Raises:
        InputError: no such file or backend, or a kind of file that the backend does not take.
        ModelError: damaged, foreign or without our metadata.
        MissingComponentError: the backend's library is not installed, or lacks what was asked of it on this machine.
    """
    file = Path(path)
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if not file.is_file():
        raise InputError(f"{file}: no such model file")
    if file.suffix == ".onnx":
        name, reason = _choose() if backend == "auto" else (backend, "as asked")
        opened = _open_onnx(file, name)
        log.info("%s runs in %s (%s)", file, opened.title, reason)
        return opened
    if file.suffix == ".engine":
        if backend != "auto":
            raise InputError(f"{file}: an engine runs in TensorRT alone; leave out --backend {backend}")
        from runtime.backends.tensorrt.backend import TrtBackend

        return TrtBackend(file)
    raise InputError(
        f"{file}: expected an .onnx or .engine model, got {file.suffix or 'no suffix'}; make one with `python -m export.onnx`"
    )


def _choose() -> tuple[str, str]:
    """What `auto` means for an ONNX file on this machine, and why."""
    try:
        import onnxruntime
    except ImportError:
        if importlib.util.find_spec("openvino"):
            return "openvino", "onnxruntime is not installed"
        return "onnxruntime", ""  # which says what to install
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "onnxruntime", "the default for .onnx files"
    if find_gpu() is None:
        return "onnxruntime", "no NVIDIA GPU found"
    return "onnxruntime-cuda", "there is an NVIDIA GPU; --backend onnxruntime is the CPU"


def _open_onnx(file: Path, backend: str) -> OnnxBackend:
    if backend.startswith("openvino"):
        from runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(file, "bfloat16" if backend == "openvino-bf16" else "float32")
    from runtime.backends.ort import OrtBackend

    return OrtBackend(file, {"onnxruntime-cuda": "cuda", "onnxruntime-tensorrt": "tensorrt"}.get(backend, "cpu"))
