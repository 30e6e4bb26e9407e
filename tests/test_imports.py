"""Import rules between packages, checked in clean interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("runtime", "calibration", "train", "export")
FORBIDDEN = {
    "runtime": ("torch", "train", "export", "calibration"),
    "calibration": ("torch", "train", "export"),
    "train": ("export", "calibration"),
    "export": (),
}
OPTIONAL = (
    *(
        "tensorrt",
        "tensorrt_rtx",
        "tensorrt_lean",
        "cuda",
        "pycuda",
        "onnxruntime",
        "openvino",
        "onnx",
        "pycocotools",
        "tensorboard",
    ),
    *("yaml", "av", "simplejpeg", "anyascii", "PIL", "ray", "pyarrow", "tritonclient"),
)
OF_AN_EXTRA = ("runtime.serving.app", "runtime.serving.metrics", "runtime.serving.middleware", "runtime.serving.schema")
OF_AN_EXTRA += ("runtime.serving.server", "runtime.serving.service")
"""Modules that no other one imports before it has seen that their libraries are there."""


def modules(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def imported_names(file: Path) -> set[str]:
    """First parts of everything a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def in_clean_interpreter(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_pulls_in_nothing_forbidden(package: str) -> None:
    code = "import importlib, sys\n"
    code += "".join(f"importlib.import_module({name!r})\n" for name in modules(package))
    code += f"print(sorted(set({FORBIDDEN[package]!r}) & set(sys.modules)))"
    result = in_clean_interpreter(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_names_a_forbidden_import_even_a_late_one(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert not imported_names(file) & set(FORBIDDEN[package]), file


def test_torch_enters_export_through_the_tracer_alone() -> None:
    users = [file.name for file in (ROOT / "export").rglob("*.py") if "torch" in imported_names(file)]
    assert users == ["tracer.py"]


def test_the_runtime_imports_without_the_optional_libraries() -> None:
    blocked = (*OPTIONAL, "torch", "fastapi", "starlette", "pydantic", "uvicorn", "h11", "prometheus_client")
    code = "import importlib, sys\n"
    code += f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
    code += "".join(f"importlib.import_module({name!r})\n" for name in modules("runtime") if name not in OF_AN_EXTRA)
    result = in_clean_interpreter(code)
    assert result.returncode == 0, result.stderr


def test_training_and_export_import_without_a_gpu_library() -> None:
    code = "import importlib, sys\nsys.modules.update(dict.fromkeys(('tensorrt', 'tensorrt_rtx', 'cuda', 'pycuda')))\n"
    code += "".join(
        f"importlib.import_module({name!r})\n" for package in ("calibration", "train", "export") for name in modules(package)
    )
    result = in_clean_interpreter(code)
    assert result.returncode == 0, result.stderr


def test_the_console_command_imports_no_package_before_it_knows_the_command() -> None:
    result = in_clean_interpreter(f"import asff.__main__, sys\nprint(sorted(set({PACKAGES!r}) & set(sys.modules)))")
    assert (result.stdout, result.stderr) == ("[]\n", "")


FILES_FOR_3_9 = sorted(file for package in ("asff", "runtime") for file in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("file", FILES_FOR_3_9, ids=lambda file: file.stem)
def test_runtime_is_written_in_python_3_9(file: Path) -> None:
    assert ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9)).body


def test_the_public_names_of_the_runtime_exist() -> None:
    import runtime

    assert {"Detector", "Detections"} <= set(runtime.__all__)
    assert all(hasattr(runtime, name) for name in runtime.__all__)


@pytest.mark.parametrize(
    "module",
    [
        "runtime.benchmark",
        "runtime.bulk",
        "runtime.detect",
        "runtime.evaluate",
        "runtime.serve",
        "runtime.visualize",
        "train",
        "train.validate",
        "train.visualize",
        "train.weights",
        "calibration",
        "export.onnx",
        "export.engine",
        "export.recover",
        "export.verify",
        "export.chain",
        "export.triton",
        "export.demo",
    ],
)
def test_every_command_explains_itself_with_an_example(module: str) -> None:
    result = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "example:" in result.stdout
    assert f"python -m {module}" in result.stdout
