"""The oldest versions that are declared are those that CI runs the runtime's tests on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", ["numpy", "opencv-python-headless", "onnxruntime", "pycocotools", "tqdm"])
def test_ci_runs_on_what_is_declared(package: str) -> None:
    declared = re.search(rf'"{package}>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    tested = re.search(rf"'{package}==([\d.]+)'", (ROOT / ".ci" / "python39").read_text())
    assert declared and tested
    parts = declared[1].split(".")
    assert tested[1].split(".")[: len(parts)] == parts


def test_the_oldest_python() -> None:
    assert 'requires-python = ">=3.9"' in (ROOT / "pyproject.toml").read_text()
