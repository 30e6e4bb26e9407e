"""The steps of the GPU check that a CPU can take: parse and build with TensorRT-RTX, run in ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.manifest import write_manifest
from tests.support.engine_models import MINI_SPEC, mini
from tools import gpu_check

needs_rtx = pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt-rtx is not installed (pip install tensorrt-rtx)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An FP32 and an FP16 file, as `prepare` writes them, and one whose precision is not what it says."""
    (tmp_path / "mini").mkdir()
    for name, precision, claim in (("fp32", "fp32", "fp32"), ("fp16", "fp16", "fp16"), ("wrong", "fp32", "fp16")):
        file, spec = tmp_path / "mini" / f"{name}.onnx", MINI_SPEC.replace(precision=claim)
        mini(file, precision, claim=claim)
        write_manifest(file, spec, [], {})
        np.savez(file.with_suffix(".golden.npz"), *gpu_check._run_all(file, gpu_check.images_of(spec)))
    return tmp_path


def step(name: str, folder: Path, *more: str) -> tuple[int, dict[str, dict[str, object]]]:
    code = gpu_check.main([name, "--folder", str(folder), *more])
    return code, {Path(item["file"]).stem: item for item in json.loads((folder / f"{name}.json").read_text())}


@needs_rtx
def test_every_file_is_parsed_and_built_though_one_fails(folder: Path) -> None:
    code, found = step("parse", folder, "--flavor", "rtx")
    assert code == 0
    assert found["fp16"]["precision"] == {"convolutions": 3, "fp32": 0, "fp16": 3, "int8": 0, "kept_in_fp32": []}
    code, found = step("build", folder, "--flavor", "rtx", "--optimization-level", "0")
    assert code == 1
    assert {name: item["ok"] for name, item in found.items()} == {"fp32": True, "fp16": True, "wrong": False}
    assert "exit code 1: " in str(found["wrong"]["error"]) and "says that it is fp16" in str(found["wrong"]["error"])
    assert sorted(path.name for path in folder.glob("*/*.engine")) == ["fp16.engine", "fp32.engine"]
    code, found = step("run", folder)  # without a GPU
    assert code == 1 and all("NVIDIA" in str(item["error"]) or "no such" in str(item["error"]) for item in found.values())


def test_outputs_are_compared_with_the_golden_ones(folder: Path) -> None:
    code, found = step("run", folder, "--onnx")
    assert code == 0 and all(item["ok"] for item in found.values())
    golden = folder / "mini" / "fp32.golden.npz"
    np.savez(golden, *(value * 1.01 for value in np.load(golden).values()))
    code, found = step("run", folder, "--onnx")
    assert code == 1 and [name for name, item in found.items() if not item["ok"]] == ["fp32"]
    assert "differs by 0.0099 of the largest value, allowed is 0.001" in str(found["fp32"]["error"])


def test_an_empty_folder_names_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"make them with `python -m tools.gpu_check prepare --folder"):
        step("parse", tmp_path)
