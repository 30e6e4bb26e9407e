"""Fixtures of the server's tests: a detector whose model waits at a gate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.detector import Detector
from tests.support.serving import GatedBackend


@pytest.fixture
def backend(tiny_onnx: Path) -> Iterator[GatedBackend]:
    opened = GatedBackend(tiny_onnx)
    yield opened
    opened.close()


@pytest.fixture
def detector(backend: GatedBackend) -> Detector:
    return Detector(backend, score_threshold=0.05)
