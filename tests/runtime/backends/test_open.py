"""open_backend: automatic choice, its log line, missing libraries, GPU builds without a GPU."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime import detect
from runtime.backends.gpu import Gpu
from runtime.backends.open import open_backend
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from runtime.errors import InputError, MissingComponentError
from runtime.media.image import write_image
from tests.support.packages import need


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("auto", r"ONNX Runtime [\d.]+, CPUExecutionProvider \(.+\)"),
        ("onnxruntime", r"ONNX Runtime [\d.]+, CPUExecutionProvider \(as asked\)"),
        ("openvino", r"OpenVINO [\d.]+, CPU, float32 \(as asked\)"),
    ],
)
def test_what_was_picked_is_said(name: str, said: str, tiny_onnx: Path, caplog: pytest.LogCaptureFixture) -> None:
    need("openvino" if name == "openvino" else "onnxruntime")
    with caplog.at_level(logging.INFO), open_backend(tiny_onnx, name) as backend:
        assert isinstance(backend, OpenVinoBackend if name == "openvino" else OrtBackend)
    (line,) = caplog.messages
    assert re.fullmatch(f"{re.escape(str(tiny_onnx))} runs in {said}", line)


def test_without_onnxruntime_openvino_is_picked(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need("openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with caplog.at_level(logging.INFO), open_backend(tiny_onnx) as backend:
        assert isinstance(backend, OpenVinoBackend)
    assert caplog.messages[0].endswith("(onnxruntime is not installed)")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_library_is_named(name: str, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingComponentError, match=f"{name} is not installed; run `pip install {name}`"):
        open_backend(tiny_onnx, name)


def test_a_backend_that_does_not_exist(tiny_onnx: Path) -> None:
    with pytest.raises(InputError, match=r"backend: expected one of auto, onnxruntime, .*, got 'tflite'"):
        open_backend(tiny_onnx, "tflite")
    with pytest.raises(InputError, match="provider: expected one of cpu, cuda, tensorrt, got 'gpu'"):
        OrtBackend(tiny_onnx, "gpu")


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that is built for GPUs, but quietly opens every file on the CPU."""
    import onnxruntime

    real = onnxruntime.InferenceSession
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, providers[-1:]))


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("onnxruntime-cuda", "CUDAExecutionProvider"),
        ("onnxruntime-tensorrt", "TensorrtExecutionProvider"),
        ("auto", "CUDAExecutionProvider"),
    ],
)
def test_a_slower_provider_is_never_taken_in_silence(
    name: str, provider: str, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.backends.open.find_gpu", lambda: Gpu("H200", "9.0"))
    with pytest.raises(MissingComponentError, match=f"{provider} does not start .* fell back to CPU.* --backend onnxruntime"):
        open_backend(tiny_onnx, name)
    with open_backend(tiny_onnx, "onnxruntime") as asked_for:
        assert asked_for.spec.name == "tiny"


@pytest.mark.usefixtures("gpu_build")
def test_a_gpu_build_without_a_gpu_runs_on_the_cpu_and_says_so(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runtime.backends.open.find_gpu", lambda: None)
    with caplog.at_level(logging.INFO), open_backend(tiny_onnx):
        assert caplog.messages[0].endswith("CPUExecutionProvider (no NVIDIA GPU found)")


def test_a_provider_that_the_build_lacks(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    message = r"no CUDAExecutionProvider \(it has CPUExecutionProvider\); run `pip install onnxruntime-gpu`"
    with pytest.raises(MissingComponentError, match=message):
        open_backend(tiny_onnx, "onnxruntime-cuda")


def test_commands_take_a_backend(tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("openvino")
    write_image(tmp_path / "white.png", np.full((64, 128, 3), 255, np.uint8))
    arguments = ["--engine", str(tiny_onnx), "--source", str(tmp_path / "white.png"), "--json"]
    found = []
    for name in ("onnxruntime", "openvino"):
        assert detect.main([*arguments, "--backend", name]) == 0
        (record,) = json.loads(capsys.readouterr().out)["detections"]
        found.append(record)
    assert found[0]["class_name"] == found[1]["class_name"] == "ring"
    np.testing.assert_allclose(found[1]["box"], found[0]["box"], atol=1e-2)
