"""The description of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.backends.gpu import Gpu
from runtime.benchmark import machine


def test_what_there_is_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_gpu", lambda: Gpu("Some GPU", "8.6"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.234, 9, 9))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = machine.describe()
    assert (found.gpu, found.cores, found.load, found.omp_threads) == ("Some GPU", 3, 1.23, "1")
    assert found.cpu and "numpy " in found.versions


@pytest.mark.parametrize(
    ("content", "name"),
    [("processor\t: 0\nmodel name\t: Chip: 5 GHz\n", "Chip: 5 GHz"), ("Hardware\t: x\n", "arm"), (None, "arm")],
)
def test_a_cpu_without_a_name_is_its_architecture(content: str | None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Path, **options: str) -> str:
        if content is None:
            raise FileNotFoundError
        return content

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr("platform.machine", lambda: "arm")
    assert machine._cpu_name() == name
