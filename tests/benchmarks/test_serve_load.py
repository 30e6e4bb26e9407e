"""The load test on a small model, for a short while; a minute of it is marked slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.detect_command import Command

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from benchmarks import serve_load


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_nothing_but_503_under_load(seconds: int, command: Command, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ("--engine", tiny_onnx, "--seconds", seconds, "--json", "--", "--max-images", "12")
    code, out, err = command(serve_load.main, *options)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found["statuses"]) <= {"200", "503"} and found["statuses"]["200"] > 20
    assert found["errors"] == {} and found["left"] > 0
    assert sum(found["batches"].values()) > 10 and set(found["batches"]) - {"1"}  # batches of several images too
