"""Loads stubs of the libraries that TensorRT's bindings link, so that the bindings alone can be imported for their names.

NVIDIA's package `tensorrt-cu13-bindings` (1 MB) holds every name and signature; what it links (a gigabyte) needs a GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


def load_stubs(package: str) -> None:
    """Loads the stubs that a package of bindings links, unless the real libraries are installed; skips without a compiler."""
    found = importlib.util.find_spec(package)
    if importlib.util.find_spec("tensorrt_libs") or found is None or found.origin is None:
        return
    linked = re.search(rb"libnvinfer\.so\.(\d+)", next(Path(found.origin).parent.glob("tensorrt*.so")).read_bytes())
    compiler = shutil.which("gcc") or shutil.which("cc")
    if linked is None or compiler is None:
        pytest.skip("stubs of the libraries that the bindings link need a C compiler")
    code = "\n".join(f"void *{name}(void) {{ return 0; }}" for name in _FUNCTIONS)
    with tempfile.TemporaryDirectory() as folder:
        for name in _LIBRARIES:
            file = f"lib{name}.so.{linked[1].decode()}"
            command = [compiler, "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{file}", "-o", f"{folder}/{file}"]
            subprocess.run(command, input=code, text=True, check=True)
            ctypes.CDLL(f"{folder}/{file}")  # not for all: TensorRT-RTX looks for symbols of the same names
