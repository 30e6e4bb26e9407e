"""Chooses the backend for a model file and opens it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Optional

from runtime.backends.base import Backend
from runtime.backends.gpu import find_gpu
from runtime.backends.onnx_base import OnnxBackend
from runtime.backends.triton import TritonBackend, served_address
from runtime.components import is_installed, load
from runtime.errors import InputError
from runtime.files import PathLike

log = logging.getLogger(__name__)

BACKENDS = ("auto", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "openvino-bf16")
"""Choices of `--backend`: a library, with its device or dtype where that is not the CPU or float32."""


def open_backend(path: PathLike, backend: str = "auto", threads: Optional[int] = None) -> Backend:
    """Opens a model file; logs the library it runs in and why.

    Args:
        path: an exported `.onnx` file, an `.engine`, which TensorRT runs, or `triton://host:port/model` of a Triton server.
        backend: one of `BACKENDS`. `auto`: ONNX Runtime, on an NVIDIA GPU where there is one and the library is built for it;
            OpenVINO where ONNX Runtime is not installed. Any other choice has no fallback.
        threads: of one run on the CPU; all cores by default.

    Raises:
        InputError: no such file or backend, or a kind of file that the backend does not take.
        ModelError: damaged, foreign or without a spec in its metadata.
        MissingComponentError: the backend's library is not installed, or lacks what was asked of it on this machine.
    """
    file = Path(path)
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    address = served_address(path)
    if address is not None:
        if backend != "auto":
            raise InputError(f"{address}: a served model runs on its server; leave out --backend {backend}")
        return TritonBackend(address)
    if not file.is_file():
        raise InputError(f"{file}: no such model file")
    if file.suffix == ".onnx":
        name, reason = _choose() if backend == "auto" else (backend, "as asked")
        opened = _open_onnx(file, name, threads)
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
    """Chooses the backend of an ONNX file on this machine; returns it with the reason."""
    if not is_installed("onnxruntime") and is_installed("openvino"):
        return "openvino", "onnxruntime is not installed"
    if "CUDAExecutionProvider" not in load("onnxruntime").get_available_providers():
        return "onnxruntime", "the default for .onnx files"
    if find_gpu() is None:
        return "onnxruntime", "no NVIDIA GPU found"
    return "onnxruntime-cuda", "there is an NVIDIA GPU; --backend onnxruntime is the CPU"


def _open_onnx(file: Path, backend: str, threads: Optional[int]) -> OnnxBackend:
    if backend.startswith("openvino"):
        from runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(file, "bfloat16" if backend == "openvino-bf16" else "float32", threads)
    from runtime.backends.ort import OrtBackend

    provider = {"onnxruntime-cuda": "cuda", "onnxruntime-tensorrt": "tensorrt"}.get(backend, "cpu")
    return OrtBackend(file, provider, threads)
