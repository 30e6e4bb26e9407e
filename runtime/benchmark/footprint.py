"""Measures the time and memory that opening a model takes, in a process of its own."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from runtime.backends.gpu import memory_used
from runtime.backends.open import open_backend
from runtime.backends.triton import served_address
from runtime.detector import Detector
from runtime.files import PathLike
from runtime.ops.preprocess import preprocess

log = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_ROOT = str(Path(__file__).parents[2])
# Ours come first: `-m` would put the working folder there, and PYTHONPATH another one, which may hold modules of our names.
_CHILD = """
import json, sys
sys.path = json.loads(sys.argv.pop(1))
from runtime import cli
from runtime.benchmark.footprint import main
cli.run(main)
"""


@dataclass(frozen=True)
class Footprint:
    """Time and memory of one process; memory in MB (10^6 bytes).

    Attributes:
        opening: milliseconds to open the model, loading its library included.
        before: memory in use before the model was opened.
        peaks: peak memory after a batch of each size, smaller ones first; by batch size.
        gpu: memory taken of the first GPU, None where there is none.
    """

    opening: float
    before: float
    peaks: dict[int, float]
    gpu: Optional[float]


def measure(engine: PathLike, backend: str, batches: Sequence[int]) -> Optional[Footprint]:
    """Opens a model in a new process and detects in a batch of each size; None where that cannot be done."""
    if served_address(engine) is not None:
        return None  # what it takes is taken on its server
    command = [sys.executable, "-c", _CHILD, json.dumps([_ROOT, *sys.path]), str(engine), backend, *map(str, batches)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        log.warning("%s: its memory is not known (%s)", engine, (done.stderr.splitlines() or ["the process was ended"])[-1])
        return None
    found = json.loads(done.stdout)
    return Footprint(**{**found, "peaks": {int(batch): value for batch, value in found["peaks"].items()}})


def take(engine: PathLike, backend: str, batches: Sequence[int]) -> Footprint:
    """Does what `measure` does, but in this process."""
    before, gpu_before = peak(), memory_used()
    start, peaks = time.perf_counter(), {}
    with open_backend(engine, backend) as opened:
        opening = (time.perf_counter() - start) * 1e3
        detector = Detector(opened)
        prepared, geometry = preprocess(np.zeros((480, 640, 3), np.uint8), opened.spec)
        for batch in sorted(batches):
            outputs = opened.infer(np.stack([prepared] * batch))
            for index in range(batch):
                detector.postprocess([output[index] for output in outputs], geometry)
            peaks[batch] = peak()
        gpu = memory_used()
    return Footprint(opening, before, peaks, None if gpu is None or gpu_before is None else (gpu - gpu_before) / 1e6)


def peak() -> float:
    """Peak memory of this process, in MB.

    Not from `resource.getrusage`: on Linux that includes the memory of the parent process.

    Raises:
        OSError: on systems other than Linux.
    """
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{_STATUS} has no VmHWM")


def main() -> int:
    """Prints the footprint as JSON on stdout; this is what the new process runs."""
    engine, backend, *batches = sys.argv[1:]
    print(json.dumps(asdict(take(engine, backend, list(map(int, batches))))))
    return 0
