"""A machine with an engine, its manifest and a fake GPU, for the tests of the TensorRT backend.

Every map that the fake computes is the mean of its image plus the number of the level.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.manifest import manifest_path
from runtime.spec import ModelSpec
from tests.support import engine_manifests
from tests.support.cuda_fakes import FakeEngine, FakeGpu

Command = Callable[..., tuple[int, str, str]]
SPEC = ModelSpec("tiny", ("dot",), (32, 32), (((8.0, 8.0),), ((4.0, 4.0),)), strides=(32, 16))
FACTS = {**engine_manifests.FACTS, "gpu": "Fake GPU", "compute_capability": "8.6", "hardware_compatible": False}
RTX = {"flavour": "rtx", "version": "1.7.1", "gpu": None, "compute_capability": None}
RUN = ["upload", "execute", "download", "download", "synchronize"]
CAPTURE = ["begin capture", *RUN[:-1], "end capture", "instantiate"]
REPLAY = ["launch", "synchronize"]


@dataclasses.dataclass
class Machine:
    """A machine with one engine, and the GPU that it is loaded to."""

    path: Path
    gpu: FakeGpu
    engine: FakeEngine

    def since(self, start: int) -> list[str]:
        return self.gpu.log[start:]


MakeMachine = Callable[..., Machine]


def numbered(count: int, first: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Each filled with its own number."""
    return np.broadcast_to(np.arange(first, first + count, dtype=np.float32).reshape(-1, 1, 1, 1), (count, 3, *size)).copy()


def check(maps: list[np.ndarray], count: int, first: int = 0) -> None:
    for level, values in enumerate(maps):
        assert values.shape == (count, *SPEC.map_shape(level)) and values.dtype == np.float32
        expected = np.arange(first, first + count, dtype=np.float32).reshape(-1, 1, 1, 1) + level
        assert np.array_equal(values, np.broadcast_to(expected, values.shape))


def swap(path: Path) -> None:
    path.write_bytes(b"another plan")


def edit(**changes: Any) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        content = json.loads(manifest_path(path).read_text())
        content["details"]["engine"].update(changes)
        manifest_path(path).write_text(json.dumps(content))

    return work
