"""`python -m runtime.bulk` on a real cluster of Ray: processes that are killed cost nothing, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bulk_runs import descendants, is_running, read_rows, workers

pytest.importorskip("pyarrow")
pytest.importorskip("ray")

ROOT = Path(__file__).parents[3]
LONGEST = 180  # seconds of a run


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[int], Path]:
    """Large images, so that a shard takes a while: links to one file."""
    import cv2
    import numpy as np

    def build(count: int) -> Path:
        folder = tmp_path / "in"
        folder.mkdir()
        cv2.imwrite(str(tmp_path / "one.png"), np.full((1500, 3000, 3), 255, np.uint8))
        for number in range(count):
            os.link(tmp_path / "one.png", folder / f"{number:04}.png")
        (folder / "empty.png").write_bytes(b"")
        return folder

    return build


@contextlib.contextmanager
def started(model: Path, folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A run of two workers in a process of its own, in a folder that has modules of our names."""
    output = folder.parent / "out"
    (folder.parent / "runtime").mkdir(exist_ok=True)
    (folder.parent / "runtime" / "__init__.py").write_text("raise RuntimeError('not ours')")
    options = ("--source", str(folder), "--output", str(output), "--workers", "2", "--json", *more)
    command = [sys.executable, str(ROOT / "asff" / "__main__.py"), "bulk", "--engine", str(model), *options]
    process = subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Waits until something is found; returns whether that was before the process ended."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end and process.poll() is None:
        if found():
            return True
        time.sleep(0.02)
    return False


def shards(folder: Path) -> int:
    return len(list(folder.glob("shard-*.parquet")))


def check_rows(folder: Path, count: int) -> None:
    rows = read_rows(folder / "out")
    assert [Path(row["path"]).name for row in rows] == [*(f"{number:04}.png" for number in range(count)), "empty.png"]
    assert [len(row["boxes"]) for row in rows] == [1] * count + [0]
    assert [row["error"] is None for row in rows] == [True] * count + [False]
    assert all(path.name.startswith(("shard-", "_plan", "_run")) for path in (folder / "out").iterdir())


def check_nothing_left(below: set[int], temporary: Path, wait: float = 20) -> None:
    end = time.monotonic() + wait
    while any(map(is_running, below)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [number for number in below if is_running(number)]
    assert not list(temporary.glob("bulk-*"))


def test_a_killed_worker_costs_nothing(
    tiny_onnx: Path, photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t-") as short:
        monkeypatch.setenv("TMPDIR", short)
        with started(tiny_onnx, photos(12), "--shard-size", "2") as process:
            assert wait_for(lambda: shards(tmp_path / "out") > 0, process)
            below = set(descendants(process.pid))
            os.kill(workers(process.pid)[0], signal.SIGKILL)
            out, err = process.communicate(timeout=LONGEST)
        assert process.returncode == 0, err
        assert json.loads(out)["images"] == json.loads(out)["new_images"] == 13 and json.loads(out)["failed"] == 1
        assert [line.split(";")[0] for line in err.splitlines()[1:]] == [
            "2 workers with 1 threads each",
            "13 images, 1 of them failed, 12 detections",
        ]
        check_rows(tmp_path, 12)
        check_nothing_left(below, Path(short))


@pytest.mark.slow
def test_twenty_random_kills_of_workers(tiny_onnx: Path, photos: Callable[[int], Path], tmp_path: Path) -> None:
    """Kills a worker at 20 random moments of one run."""
    chance, kills = random.Random(0), 0
    with started(tiny_onnx, photos(400), "--shard-size", "4") as process:
        while kills < 20 and wait_for(lambda: bool(workers(process.pid)), process):
            time.sleep(chance.uniform(0, 5))
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(chance.choice(workers(process.pid)), signal.SIGKILL)
                kills += 1
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert kills == 20 and json.loads(out)["images"] == 401
    check_rows(tmp_path, 400)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_goes_on(
    number: signal.Signals, tiny_onnx: Path, photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t-") as short:
        monkeypatch.setenv("TMPDIR", short)
        folder = photos(24)
        with started(tiny_onnx, folder, "--shard-size", "2") as process:
            assert wait_for(lambda: shards(tmp_path / "out") > 2, process)
            below = set(descendants(process.pid))
            os.kill(process.pid, number)
            _, err = process.communicate(timeout=60)
        if number != signal.SIGKILL:
            assert process.returncode == 128 + number and err.splitlines()[-1] == "interrupted", err
            check_nothing_left(below, Path(short))
        made = shards(tmp_path / "out")
        assert 0 < made < 13
        with started(tiny_onnx, folder, "--shard-size", "2") as process:
            out, err = process.communicate(timeout=LONGEST)
        assert process.returncode == 0, err
        assert json.loads(out)["images"] == 25 and json.loads(out)["new_images"] <= 25 - 2 * (made - 1)
        check_rows(tmp_path, 24)
        check_nothing_left(below, Path(short), wait=120)  # two of Ray's helpers notice late that the others were killed


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small file system needs root")
def test_a_full_disk_ends_in_one_line(tiny_onnx: Path, photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder = photos(12)
    (tmp_path / "out").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", tmp_path / "out"], check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        with started(tiny_onnx, folder, "--shard-size", "2") as process:
            out, err = process.communicate(timeout=LONGEST)
        assert (process.returncode, out) == (2, "") and "free some space" in err.splitlines()[-1], err
        subprocess.run(["mount", "-o", "remount,size=1m", tmp_path / "out"], check=True)
        with started(tiny_onnx, folder, "--shard-size", "2") as process:
            out, err = process.communicate(timeout=LONGEST)
        assert process.returncode == 0 and json.loads(out)["images"] == 13, err
        check_rows(tmp_path, 12)
    finally:
        subprocess.run(["umount", tmp_path / "out"], check=True)
