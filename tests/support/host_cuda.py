"""Runs Python programs over a `libcuda.so.1` that computes in host memory, in processes of their own; see `libcuda/context.c`.

The real cuda-bindings and pycuda run on it, where they are installed. It proves order, ownership, threads and what happens at
exit; never numbers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PACKAGES = {"cuda-bindings": ("cuda", "cuda.bindings"), "pycuda": ("pycuda",)}
"""What a package needs to be importable, outermost first."""
ROOT = Path(__file__).parents[2]
_SOURCES = Path(__file__).parent / "libcuda"
_LIBRARY = "libcuda.so.1"
_LONGEST = 60
NOTHING_LEFT = {
    **dict.fromkeys(("device", "pinned", "streams", "events", "graphs", "executables", "pending", "pushed", "faults"), 0),
    "retained": 1,  # the primary context, on purpose
    "fault": "",
}


def build() -> Path:
    """Returns the folder of the library, compiled once for each state of its sources; skips the test without a compiler."""
    content = b"".join(file.read_bytes() for file in sorted(_SOURCES.iterdir()))
    folder = Path(tempfile.gettempdir()) / f"host-cuda-{os.getuid()}-{hashlib.sha256(content).hexdigest()[:16]}"
    if (folder / _LIBRARY).exists():
        return folder
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler or sys.platform != "linux":
        pytest.skip("the host-memory libcuda.so.1 needs Linux and a C compiler")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / _LIBRARY
        flags = ("-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", f"-Wl,-Bsymbolic,-soname,{_LIBRARY}")
        subprocess.run([compiler, *flags, "-o", made, *sorted(_SOURCES.glob("*.c")), "-ldl"], check=True)
        os.replace(made, folder / _LIBRARY)  # another process may have made it meanwhile
    return folder


def need_package(package: str) -> None:
    """Skips the test unless a CUDA package is installed."""
    if not all(importlib.util.find_spec(name) for name in PACKAGES[package]):
        pytest.skip(f"{package} is not installed")


@dataclass
class Program:
    """A running Python program."""

    process: subprocess.Popen[str]
    report: Path

    def interrupt(self) -> None:
        """Sends SIGINT once it has written its first line, `begun`."""
        assert self.process.stdout and self.process.stdout.readline() == "begun\n", self.finish()
        self.process.send_signal(signal.SIGINT)

    def finish(self) -> tuple[int, str, str]:
        """Waits for its end; returns exit code, stdout and stderr."""
        with self.process:
            try:
                out, err = self.process.communicate(timeout=_LONGEST)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        return self.process.returncode, out, err

    def account(self) -> dict[str, Any]:
        """What the double noted at the end: items by kind that were not given back, and faults."""
        found: dict[str, Any] = json.loads(self.report.read_text())
        return found


def start(folder: Path, *arguments: object, is_integrated: bool = False, package: str = "cuda-bindings") -> Program:
    """Starts `python ARGUMENTS` over the library, in the root of the project.

    Args:
        folder: for its account.
        arguments: of Python.
        is_integrated: whether the GPU shares the host's memory.
        package: to reach the GPU with; `host_engine.install` hides the other.
    """
    report = folder / f"{package}-{len(list(folder.iterdir()))}.account.json"
    report.touch()
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(build()), os.environ.get("LD_LIBRARY_PATH")))),
        "OMP_NUM_THREADS": "1",
        "HOST_CUDA_REPORT": str(report),
        "HOST_CUDA_INTEGRATED": str(int(is_integrated)),
        "HOST_CUDA_PACKAGE": package,
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *map(str, arguments)]
    return Program(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes), report)
