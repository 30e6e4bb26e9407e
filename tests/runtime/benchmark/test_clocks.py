"""Clocks from a made-up nvidia-smi: what it writes, and that it ends with what is watched."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.benchmark import clocks
from runtime.benchmark.clocks import Clocks, watched


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("1980, 1980, 2619, 40, 120.5\n1755, 1980, 2619, 61, 690.12\n", Clocks((1755, 1980), 1980, (2619, 2619), 61, 690.12)),
        ("1980, 1980, 2619, 40, [N/A]\n", Clocks((1980, 1980), 1980, (2619, 2619), 40, None)),
        ("1980, 1980, 2619, 40, 1.0\n300, 19", Clocks((1980, 1980), 1980, (2619, 2619), 40, 1.0)),  # cut off
        ("[N/A], [N/A], [N/A], 40, 1\n", None),
        ('Field "clocks.sm" is not a valid field to query.\n', None),
        ("", None),
    ],
)
def test_what_nvidia_smi_writes_is_summarized(
    lines: str, expected: Clocks | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lines").write_text(lines)
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n/bin/cat {tmp_path}/lines\n: > {tmp_path}/written\nexec /bin/sleep 60\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(clocks, "pci_bus_id", lambda: "0000:3B:00.0")
    with watched() as found:
        while not (tmp_path / "written").exists():
            pass
        assert found == []
    assert found == ([expected] if expected else [])
    assert "--id=0000:3B:00.0 --query-gpu=clocks.sm,clocks.max.sm" in (tmp_path / "asked").read_text()
    if expected and expected.power == 690.12:
        assert str(expected) == "SM 1755 to 1980 of 1980 MHz, memory 2619 to 2619 MHz, up to 61 °C, up to 690 W"


@pytest.mark.parametrize("bus", [None, "0000:3B:00.0"])
def test_without_a_gpu_or_nvidia_smi_there_are_none(bus: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(clocks, "pci_bus_id", lambda: bus)
    with watched() as found:
        pass
    assert found == []
