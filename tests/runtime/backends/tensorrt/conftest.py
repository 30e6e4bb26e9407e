"""Fixture of the tests of the TensorRT backend: a machine with an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.manifest import Origin, write_manifest
from runtime.spec import ModelSpec
from tests.support.cuda_fakes import FakeGpu
from tests.support.engine_fakes import FakeEngine
from tests.support.trt_machine import FACTS, SPEC, Machine, MakeMachine, install


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    """Makes machines; keywords change what the manifest says, but those that `make` names are of the machine."""

    def make(
        installed: str = "",
        capability: str = "8.6",
        spec: ModelSpec = SPEC,
        further: dict[str, tuple[int, int, int]] | None = None,
        package: str = "cuda-bindings",
        is_lean: bool = False,
        **changes: Any,
    ) -> Machine:
        info: dict[str, Any] = {**FACTS, **changes}
        path = tmp_path / "tiny.engine"
        path.write_bytes(b"plan")
        write_manifest(path, spec, [Origin("onnx", "tiny.onnx", "0")], {"engine": info})
        gpu = FakeGpu()
        engine = FakeEngine(gpu, spec, (info["batch"]["min"], info["batch"]["max"]), further or {})
        install(monkeypatch, gpu, engine, installed or info["version"], capability, package, is_lean)
        return Machine(path, gpu, engine)

    return make
