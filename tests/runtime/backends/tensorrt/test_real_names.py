"""The libraries that are installed against the fakes, and the lean runtime without a driver."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from runtime import detect
from runtime.backends.gpu import find_gpu
from runtime.backends.tensorrt.library import load_tensorrt
from runtime.manifest import Origin, write_manifest
from tests.support.engine_fakes import FakeContext, FakeEngine
from tests.support.stub_tensorrt import load_stubs
from tests.support.tensorrt_fakes import VERSIONS, Builder, Config, library
from tests.support.trt_machine import FACTS, SPEC, Command

MODULES = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_lean_bindings")
# which the lean runtime lacks
BUILDER_ONLY = ("Builder", "ICastLayer", "IConstantLayer", "NetworkDefinitionCreationFlag", "LayerType")
OF_THE_FAKES = ("gpu", "engine", "addresses", "shape", "in_use", "token", "complain")


@pytest.fixture(params=MODULES)
def real(request: pytest.FixtureRequest) -> Any:
    if not importlib.util.find_spec(request.param):
        pytest.skip(f"{request.param} is not installed")
    if request.param == "tensorrt_bindings":
        load_stubs(request.param)
    return importlib.import_module(request.param)


def methods(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_") and name not in OF_THE_FAKES]


def test_what_the_fakes_have_the_library_has(real: Any) -> None:
    is_rtx = real.__name__ == "tensorrt_rtx"
    major = "1.7" if is_rtx else real.__version__.partition(".")[0]
    (version,) = (version for version in VERSIONS if version.startswith(f"{major}."[:3]))
    for name, value in vars(library(version)).items():
        if "lean" in real.__name__ and name in BUILDER_ONLY:
            continue
        found = getattr(real, name)
        for member in vars(value) if isinstance(value, SimpleNamespace) else ():
            assert hasattr(found, member), f"{name}.{member}"
    for kind, fake in ((real.ICudaEngine, FakeEngine), (real.IExecutionContext, FakeContext)):
        config = [] if is_rtx else ["create_runtime_config"]  # taken only where the library has CudaGraphStrategy
        assert [name for name in methods(fake) if not hasattr(kind, name) and name not in config] == []
    for kind, names in (
        (real.IExecutionContext, ("nvtx_verbosity",)),
        (real.ICudaEngine, ("num_io_tensors",)),
        (real.Runtime, ("deserialize_cuda_engine", "engine_host_code_allowed", "num_DLA_cores", "DLA_core")),
        (real.TensorIOMode, ("INPUT", "OUTPUT")),
    ):
        assert [name for name in names if not hasattr(kind, name)] == []
    if hasattr(real, "Builder"):
        for kind, fake in ((real.Builder, Builder), (real.IBuilderConfig, Config)):
            assert [name for name in methods(fake) if not hasattr(kind, name)] == []
        assert hasattr(real.ICastLayer, "to_type") and hasattr(real.IConstantLayer, "weights")
        dla = ("default_device_type", "DLA_core", "hardware_compatibility_level", "profiling_verbosity")
        assert [name for name in dla if not hasattr(real.IBuilderConfig, name)] == []
    if is_rtx:
        assert hasattr(real.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
        assert hasattr(real.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(real, "CudaGraphStrategy") == is_rtx  # by which the adapter tells who captures


@pytest.mark.skipif(not importlib.util.find_spec("tensorrt_lean_bindings"), reason="tensorrt-lean is not installed")
@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_driver_the_lean_runtime_is_not_touched(tmp_path: Path, command: Command) -> None:
    version = load_tensorrt("lean").version
    path = tmp_path / "tiny.engine"
    path.write_bytes(b"plan")
    engine = {**FACTS, "version": version, "version_compatible": True}
    write_manifest(path, SPEC, [Origin("onnx", "tiny.onnx", "0")], {"engine": engine})
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((20, 30, 3), np.uint8))
    code, out, err = command(detect.main, "--engine", path, "--source", tmp_path / "black.png")
    assert (code, out) == (3, "") and re.search("no NVIDIA driver here", err)
