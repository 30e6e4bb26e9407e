"""Measures a model for `gpu_check`: latency, latency under load, endurance, and the end of programs that leave it open."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.backends.gpu import memory_used
from runtime.backends.open import open_backend
from runtime.benchmark.clocks import watched
from runtime.benchmark.load import under_load
from runtime.benchmark.stages import TimedBackend
from runtime.benchmark.timing import milliseconds, spread
from runtime.errors import CheckFailed

_BATCHES = (1, 8)
_WARM_UP = 10
_THREADS = 4
_OPENINGS = 20
_SETTLED = 3
"""Openings after which memory must stay as it is: until then libraries set up what they keep."""
_LONGEST_END = 60

_BEGIN = """
import itertools, sys, threading
import numpy as np
from runtime import Detector
frames = itertools.repeat(np.full((64, 64, 3), 255, np.uint8))
detector = Detector(sys.argv[1])
"""
ENDS = {
    "dropped in another thread": "held = [detector]; del detector\nthreading.Thread(target=held.clear).start()",
    "a stream left open": "stream = detector.stream(frames, batch=4)\nnext(stream)",
    "Ctrl-C": "stream = detector.stream(frames, batch=4)\nnext(stream)\nprint('begun', flush=True)\nfor _ in stream: pass",
}
"""Programs that do not close what they opened."""


def bench(model: Path, images: NDArray[Any], repeats: int) -> dict[str, Any]:
    """Times batches of 1 and 8, alone and in four threads at once.

    Returns:
        Spreads in milliseconds by batch: `wall`, `gpu` (by CUDA events, where there are any) and `load`; the GPU's clocks.
    """
    with open_backend(model) as backend, watched() as clocks:
        if isinstance(backend, TimedBackend):
            backend.compile_at_once()
        found = {str(batch): _times(backend, images[:batch], repeats) for batch in _BATCHES}
        title = backend.title
    return {"library": title, "batches": found, "clocks": str(clocks[0]) if clocks else None}


def _times(backend: Backend, images: NDArray[Any], repeats: int) -> dict[str, Any]:
    for _ in range(_WARM_UP):
        backend.infer(images)
    wall = spread([milliseconds(lambda: backend.infer(images)) for _ in range(repeats)])
    gpu = spread([backend.infer_timed(images)[1] for _ in range(repeats)]) if isinstance(backend, TimedBackend) else None
    load = under_load("A", backend, images, _THREADS, max(1, repeats // _THREADS))
    return {"wall": wall, "gpu": gpu, "load": load.milliseconds, "load_images_per_second": round(load.images_per_second, 1)}


def soak(model: Path, images: NDArray[Any], seconds: float) -> dict[str, Any]:
    """Runs four threads for a while, whose outputs must stay as they are, and opens and closes the model with memory watched.

    Raises:
        CheckFailed: an output changed, or memory grew.
    """
    with open_backend(model) as backend:
        runs = _run_in_threads(backend, images[:3], seconds)
    memory: list[int] = []
    for _ in range(_OPENINGS):
        with open_backend(model) as backend:
            backend.infer(images[:1])
        memory.append(memory_used() or 0)
    if memory[-1] > memory[_SETTLED]:
        raise CheckFailed(f"the GPU's memory in use grew from {memory[_SETTLED]} to {memory[-1]} bytes in {_OPENINGS} openings")
    return {"runs": runs, "openings": _OPENINGS, "memory_in_use": memory[-1]}


def _run_in_threads(backend: Backend, images: NDArray[Any], seconds: float) -> int:
    """Returns the number of runs; each must give what the first one of its thread gave, bit for bit."""
    end = time.monotonic() + seconds
    has_failed = threading.Event()

    def work(_: int) -> int:
        count = 0
        try:
            first = [output.copy() for output in backend.infer(images)]
            while count == 0 or (time.monotonic() < end and not has_failed.is_set()):
                count += 1
                for output, expected in zip(backend.infer(images), first):
                    if not np.array_equal(output, expected):
                        raise CheckFailed(
                            f"run {count} of a thread differs from its first, by {np.abs(output - expected).max()}"
                        )
        except BaseException:
            has_failed.set()
            raise
        return count

    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(work, range(_THREADS)))


def end(model: Path) -> dict[str, Any]:
    """Runs programs that leave the model open, at once; each must end with its own exit code, and say nothing but that.

    Raises:
        CheckFailed: one ended otherwise.
    """
    running = {name: _start(_BEGIN + program, model) for name, program in ENDS.items()}
    found = {name: _finish(name, process) for name, process in running.items()}
    bad = [f"{name}: {said}" for name, (is_good, said) in found.items() if not is_good]
    if bad:
        raise CheckFailed("; ".join(bad))
    return {"ends": {name: said for name, (_, said) in found.items()}}


def _start(program: str, model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(model)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(name: str, process: subprocess.Popen[str]) -> tuple[bool, str]:
    expected, last = (-signal.SIGINT, ["KeyboardInterrupt"]) if name == "Ctrl-C" else (0, [])
    with process:
        try:
            if name == "Ctrl-C" and process.stdout and process.stdout.readline():
                process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=_LONGEST_END)
        except subprocess.TimeoutExpired:
            process.kill()
            return False, f"did not end within {_LONGEST_END} s"
    lines = err.splitlines()
    is_good = process.returncode == expected and lines[-1:] == last
    return is_good, f"exit code {process.returncode} {' '.join(lines[-3:])}".strip()
