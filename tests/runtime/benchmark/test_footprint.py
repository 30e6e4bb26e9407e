"""The footprint of a model is measured in a process of its own."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from runtime.benchmark import footprint
from runtime.benchmark.footprint import Footprint, measure, peak, take


def test_a_new_process_knows_nothing_of_this_ones_memory(tiny_onnx: Path) -> None:
    ballast = np.ones(400_000_000, np.uint8)
    assert peak() > 400
    found = measure(tiny_onnx, "onnxruntime", [500, 1])
    assert isinstance(found, Footprint) and len(ballast)
    assert 10 < found.before < 400
    assert list(found.peaks) == [1, 500]  # small ones first, since a peak never goes down
    assert found.before < found.peaks[1]
    assert found.peaks[1] + 500 * 3 * 64 * 64 * 4 / 1e6 < found.peaks[500] < 400
    assert found.opening > 1


def test_memory_of_the_gpu_is_what_was_added(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([300_000_000, 450_000_000])
    monkeypatch.setattr(footprint, "memory_used", lambda: next(used))
    assert take(tiny_onnx, "onnxruntime", [1]).gpu == 150
    monkeypatch.setattr(footprint, "memory_used", lambda: None)
    assert take(tiny_onnx, "onnxruntime", [1]).gpu is None


def test_a_process_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert measure(tmp_path / "gone.onnx", "auto", [1]) is None
    assert caplog.messages == [
        f"{tmp_path / 'gone.onnx'}: its memory is not known (error: {tmp_path / 'gone.onnx'}: no such model file)"
    ]


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t 1234 kB\n")
    monkeypatch.setattr(footprint, "_STATUS", tmp_path / "status")
    with pytest.raises(OSError, match="has no VmHWM"):
        peak()


def test_modules_of_the_user_do_not_shadow_ours(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime.py").write_text("raise SystemExit('decoy')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert measure(tiny_onnx, "auto", (1,)) is not None
