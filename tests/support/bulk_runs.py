"""Shared by the tests of `runtime.bulk`: images, results, and Ray's processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from runtime.bulk import __main__ as command_module
from runtime.bulk.cluster import Pool, as_error
from runtime.bulk.shards import Counts
from runtime.bulk.worker import Job, ShardWorker
from runtime.media.image import write_image
from tests.support.detect_command import white


def make_images(folder: Path, count: int = 5) -> Path:
    """White images `0.png`, ..., every second one in a folder of its own, and a file that is none."""
    for number in range(count):
        write_image(folder / ("sub" if number % 2 else "") / f"{number}.png", white())
    (folder / "empty.png").write_bytes(b"")
    return folder


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run, as a user reads them, in order."""
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = parquet.read_table(folder).to_pylist()
    return rows


def work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `runtime.bulk` make its shards in this process, without Ray."""

    def make(ray: object, job: Job, pool: Pool, shards: Sequence[int]) -> Iterator[Counts]:
        worker = ShardWorker(job, pool.threads)
        for shard in shards:
            (row,) = (dict(zip(found, values)) for found in [worker({"shard": [shard]})] for values in zip(*found.values()))
            if row["kind"]:
                raise as_error(row["kind"], row["error"])
            yield Counts(row["images"], row["failed"], row["detections"])

    def connect(*_: object) -> AbstractContextManager[None]:
        return nullcontext()

    monkeypatch.setattr(command_module, "load_ray", lambda **_: None)
    monkeypatch.setattr(command_module, "connected", connect)
    monkeypatch.setattr(command_module, "choose_pool", lambda *_: Pool(1, 1, 0))
    monkeypatch.setattr(command_module, "make_shards", make)


def descendants(process: int) -> dict[int, str]:
    """Processes below a process, with their command lines."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
    found: dict[int, str] = {}
    for number in parents:
        above = number
        while above in parents and above != process:
            above = parents[above]
        if above == process != number:
            found[number] = names.get(number, "")
    return found


def workers(process: int) -> list[int]:
    """Processes of a run that make shards: those of its actors."""
    return [number for number, name in descendants(process).items() if name.startswith("ray::") and "MapBatches" in name]


def is_running(process: int) -> bool:
    """True unless a process has ended."""
    try:
        os.kill(process, 0)
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
