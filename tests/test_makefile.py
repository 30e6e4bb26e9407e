"""The Makefile against a Python that prints its arguments: what a user gives is data, and what is not used is an error."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ODD = 'Tom\'s photos; $HOME `id` "$(id)" a=b'

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed; apt-get install make")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("make")
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt", "requirements/common.lock", "requirements/cpu.lock"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" >> arguments\n")
    python.chmod(0o755)
    for stamp in (".installed", ".rtx"):
        (folder / "venv" / stamp).touch()
    return folder


def make(folder: Path, *arguments: str, **environment: str) -> tuple[int, list[str], str]:
    """Runs make; returns its exit code, the arguments of the Python that it ran, and what it printed."""
    written = folder / "arguments"
    written.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "VENV=venv", *arguments], cwd=folder, env=kept | environment, capture_output=True, text=True, check=False
    )
    found = written.read_text().splitlines() if written.is_file() else []
    return done.returncode, found, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["detect", f"SOURCE={ODD}"], ["runtime.detect", "--engine", "runs/yolov3-asff/best.onnx", "--source", ODD]),
        (
            ["detect", "SOURCE=a", f"OUTPUT={ODD}", f"MODEL={ODD}"],
            ["runtime.detect", "--engine", ODD, "--source", "a", "--output", ODD],
        ),
        (
            ["detect", "SOURCE=a", "ARGS=--conf 0.5 --x \"$HOME `id`;\" 'b c'"],
            [..., "--conf", "0.5", "--x", "$HOME `id`;", "b c"],
        ),
        (["train", f"DATA={ODD}", "RECIPE=demo"], ["train", "--data", ODD, "--recipe", "demo", "--output", "runs/demo"]),
        (["train", "DATA=d", f"RESUME={ODD}", "SIZE=96"], ["train", "--data", "d", "--resume", ODD, "--size", "96"]),
        (["data", f"DATA={ODD}", "ARGS=--strict"], ["train.data", "--data", ODD, "--strict"]),
        (["train", "ARGS=--list"], [..., "--list"]),
        (
            ["onnx", "WEIGHTS=my.run 1/best.pt"],
            ["export.onnx", "--weights", "my.run 1/best.pt", "--output", "my.run 1/best.onnx"],
        ),
        (
            ["engine", f"DATA={ODD}", "PRECISION=int8", f"WEIGHTS={ODD}"],
            ["export.chain", "--weights", ODD, "--data", ODD, "--precision", "int8"],
        ),
        (["eval", "DATA=d", f"WEIGHTS={ODD}"], ["train.validate", "--weights", ODD, "--data", "d"]),
        (["eval", "DATA=d", "WEIGHTS=w", f"MODEL={ODD}"], ["runtime.evaluate", "--engine", ODD, "--data", "d"]),
        (["visualize", f"SOURCE={ODD}", "RECIPE=demo"], ["train.visualize", "--weights", "runs/demo/best.pt", "--source", ODD]),
        (["serve", f"MODEL={ODD}", "ARGS=--port 8080"], ["runtime.serve", "--engine", ODD, "--port", "8080"]),
        (["bench", f"MODEL={ODD}"], ["runtime.benchmark", "--engine", ODD]),
        (["test", "ARGS=-k 'a or b'"], ["pytest", "-n", "auto", "--dist", "loadfile", "--timeout", "1800", "-k", "a or b"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_values_arrive_as_they_were_given(arguments: list[str], expected: list[object], folder: Path) -> None:
    code, found, printed = make(folder, *arguments)
    assert code == 0, printed
    start = expected[0] is ...
    assert found[1:] == expected if not start else found[-len(expected) + 1 :] == expected[1:], printed


def test_a_value_from_the_environment(folder: Path) -> None:
    assert make(folder, "detect", SOURCE=ODD)[1][-2:] == ["--source", ODD]
    assert make(folder, "detect", SOURCE="a", PRECISION="int8")[0] == 0  # what is not used there may be meant for others


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["engine", "DATA=d", "PRECISON=int8"], "PRECISON is not a variable of `make engine`; it has: .*PRECISION"),
        (["onnx", "OUTPUT=o"], "OUTPUT is not a variable of `make onnx`"),
        (["help", "DATA=d"], "DATA is not a variable of `make help`; it has: none"),
        (["detect"], "SOURCE is not set; try: make detect SOURCE=photos/"),
        (["detect", "SOURCE= "], "SOURCE is not set"),
        (["onnx", "PRECISION=int8"], "PRECISION=int8: this makes fp32 or fp16"),
        (["detect", "SOURCE=a", "ARGS=Tom's"], "unmatched single quote"),
    ],
    ids=str,
)
def test_errors(arguments: list[str], message: str, folder: Path) -> None:
    code, found, printed = make(folder, *arguments)
    assert code != 0 and found == []
    assert re.search(message, printed), printed


def test_every_target_is_in_the_help(folder: Path) -> None:
    code, _, printed = make(folder)
    assert code == 0
    targets = [
        line.split(":")[0] for line in (folder / "Makefile").read_text().splitlines() if re.match(r"[a-z-]+:.* ## ", line)
    ]
    assert len(targets) > 15
    assert all(f"  {target} " in printed for target in targets)
