"""Describes the machine that a benchmark runs on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from runtime.backends.gpu import find_gpu


@dataclass(frozen=True)
class Machine:
    """The machine and its state.

    Attributes:
        cpu: name of the CPU.
        cores: number of cores that this process may use.
        gpu: name of the first NVIDIA GPU, if there is one.
        load: load average of the last minute; None where the system does not count it.
        versions: of the libraries outside the model; each backend names its own.
        threads: of OpenCV, and OMP_NUM_THREADS, None where it is not set.
    """

    cpu: str
    cores: int
    gpu: Optional[str]
    load: Optional[float]
    versions: str
    opencv_threads: int
    omp_threads: Optional[str]


def describe() -> Machine:
    """Describes this machine."""
    gpu = find_gpu()
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpu=gpu.name if gpu else None,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        versions=f"Python {platform.python_version()}, numpy {np.__version__}, OpenCV {cv2.__version__}",
        opencv_threads=cv2.getNumThreads(),
        omp_threads=os.environ.get("OMP_NUM_THREADS"),
    )


def _cpu_name() -> str:
    """Name of the CPU on Linux, elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
