"""The steps of the GPU check that a CPU can take: parse and build with TensorRT-RTX, run in ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.manifest import write_manifest
from tests.support import host_cuda, host_engine
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


def test_the_other_steps_run_on_onnx_runtime(folder: Path) -> None:
    """To try the check itself; nothing is measured of a GPU."""
    code, found = step("bench", folder, "--onnx", "--repeats", "8", "--only", "mini/fp16")
    assert code == 0 and list(found) == ["fp16"]
    batches: Any = found["fp16"]["batches"]
    assert set(batches) == {"1", "8"} and batches["8"]["gpu"] is None and batches["8"]["load_images_per_second"] > 0
    code, found = step("soak", folder, "--onnx", "--seconds", "1", "--only", "fp32")
    assert code == 0 and found["fp32"]["openings"] == 20
    with pytest.raises(InputError, match=r"no \*/\*.onnx in it with 'int8' in its path"):
        step("exit", folder, "--only", "int8")


def test_all_steps_run_on_a_driver_in_host_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a made-up TensorRT, as on the day: separate processes, real cuda-bindings; nothing is left, no number is a GPU's."""
    host_cuda.need_package("cuda-bindings")
    day, packages = tmp_path / "day", tmp_path / "packages"
    for path in (day / "mini", packages, tmp_path / "accounts"):
        path.mkdir(parents=True)
    (packages / "tensorrt.py").write_text("from tests.support import host_engine\n\nhost_engine.install()\n")
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(packages), str(host_cuda.ROOT), known))))
    file = day / "mini" / "fp32.onnx"
    mini(file, "fp32")
    write_manifest(file, MINI_SPEC, [], {})
    host_engine.write_engine(file.with_suffix(".engine"), MINI_SPEC)
    means = gpu_check.images_of(MINI_SPEC).mean(axis=(1, 2, 3), dtype=np.float64).reshape(-1, 1, 1, 1)
    golden = [np.broadcast_to(means + level, (11, *shape)) for level, shape in enumerate(MINI_SPEC.outputs.values())]
    np.savez(file.with_suffix(".golden.npz"), *golden)
    steps = {"run": (), "soak": ("--seconds", "1"), "bench": ("--repeats", "8"), "exit": ()}
    *together, _ = [[name, "--folder", str(day), *more] for name, more in steps.items()]
    program = f"from tools import gpu_check\nfor step in {together!r}: assert gpu_check.main(step) == 0, step"
    running = [
        host_cuda.start(tmp_path / "accounts", "-c", program),
        host_cuda.start(tmp_path / "accounts", "-m", "tools.gpu_check", "exit", "--folder", day),
    ]
    codes = [program.finish() for program in running]
    assert [code for code, _, _ in codes] == [0, 0], codes
    assert running[0].account() == host_cuda.NOTHING_LEFT
    found = {name: json.loads((day / f"{name}.json").read_text())[0] for name in steps}
    assert all(item["ok"] for item in found.values())
    assert found["bench"]["batches"]["8"]["gpu"]["median"] > 0


def test_an_empty_folder_names_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"make them with `python -m tools.gpu_check prepare --folder"):
        step("parse", tmp_path)
