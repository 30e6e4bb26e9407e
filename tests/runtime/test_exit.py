"""The end of a program that leaves streams and models open: its own exit code, no abort, no hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import host_cuda, host_engine
from tests.support.packages import need
from tests.support.trt_machine import SPEC

ROOT = Path(__file__).parents[2]

BEGIN = """
import itertools, sys, threading
import numpy as np
from runtime import Detector
frames = itertools.repeat(np.full((64, 64, 3), 255, np.uint8))
"""
OPEN = "detector = Detector(sys.argv[1])\n"
STREAM = OPEN + "stream = detector.stream(frames, batch=16)\n"
LEFT_OPEN = {
    "a model": OPEN + "detector(next(frames))",
    "a model of another thread": "threading.Thread(target=lambda: Detector(sys.argv[1])(next(frames))).start()",
    "a model dropped in another thread": OPEN + "held = [detector]; del detector\nthreading.Thread(target=held.clear).start()",
    "a stream": STREAM + "next(stream)",
    "a stream of another thread": STREAM + "threading.Thread(target=lambda: next(stream)).start()",
    "a stream at Ctrl-C": STREAM + "next(stream)\nprint('begun', flush=True)\nfor _ in stream: pass",
}


def run(program: str, *arguments: object, interrupt: bool = False) -> tuple[int, str, str]:
    """Run a Python program to its end; it is sent SIGINT after its first line if asked for."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if interrupt:
            assert process.stdout and process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("what", LEFT_OPEN)
def test_onnxruntime(what: str, tiny_onnx: Path) -> None:
    need("onnxruntime")
    interrupt = "Ctrl-C" in what
    code, _, err = run(BEGIN + LEFT_OPEN[what], tiny_onnx, interrupt=interrupt)
    assert (code, err.splitlines()[-1:]) == ((-signal.SIGINT, ["KeyboardInterrupt"]) if interrupt else (0, [])), err


@pytest.mark.parametrize("package", host_cuda.PACKAGES)
def test_gpu(package: str, tmp_path: Path) -> None:
    """Engines of a made-up TensorRT on a driver that computes in host memory; all that is left open in one process."""
    host_cuda.need_package(package)
    engine = host_engine.write_engine(tmp_path / "tiny.engine", SPEC)
    begin = "from tests.support import host_engine\nhost_engine.install()\n" + BEGIN
    interrupted = LEFT_OPEN["a stream at Ctrl-C"]
    others = "\n".join(program for program in LEFT_OPEN.values() if program is not interrupted)
    programs = [host_cuda.start(tmp_path, "-c", begin + text, engine, package=package) for text in (others, interrupted)]
    programs[1].interrupt()
    for program, expected in zip(programs, ((0, []), (-signal.SIGINT, ["KeyboardInterrupt"]))):
        code, _, err = program.finish()
        assert (code, err.splitlines()[-1:]) == expected, err
        assert program.account() == host_cuda.NOTHING_LEFT


def test_a_stream_ends_with_the_last_thread_that_uses_it_and_does_not_wait_for_ever() -> None:
    program = """
import atexit, itertools, threading, time
from runtime.streaming import prefetch as module

module._LONGEST_EXIT = 0.3

def work(item):
    time.sleep(0.01)  # the main thread ends meanwhile
    return item

def counted():
    try:
        yield from itertools.count()
    finally:
        print("closed")

def use():
    print(sum(itertools.islice(stream, 10)))

def blocked():
    yield 1
    threading.Event().wait()

stream = module.flat(module.prefetch(module.batches(module.prefetch(counted(), work, 4), 2), work, 2))
never = module.prefetch(blocked(), work, 2)
atexit.register(print, "a library ends")
next(never)
threading.Thread(target=use).start()
"""
    assert run(program) == (0, "45\nclosed\na library ends\n", "")
