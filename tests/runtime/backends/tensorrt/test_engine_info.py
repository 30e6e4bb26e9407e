"""EngineInfo: read from the manifest, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.backends.tensorrt.engine_info import read_engine_info
from runtime.errors import ModelError
from runtime.manifest import Origin, manifest_path, write_manifest
from runtime.spec import ModelSpec
from tests.support.engine_manifests import FACTS

SPEC = ModelSpec("m", ("cat", "dog"), (64, 96), (((1.0, 2.0),),) * 3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5) | st.just("x" * 10_000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["min", "opt", "max"]), inner),
    max_leaves=8,
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "m.engine"
    path.write_bytes(b"plan")
    write_manifest(path, SPEC, [Origin("onnx", "m.onnx", "0")], {"engine": FACTS})
    return path


def test_what_was_written_comes_back(engine: Path) -> None:
    info = read_engine_info(engine)
    assert (info.path, info.spec, info.batch, info.onnx) == (engine, SPEC, (1, 2, 8), str(engine.parent / "m.onnx"))
    assert (info.flavor, info.version, info.version_compatible, info.hardware_compatible) == (
        "tensorrt",
        "10.12.0",
        False,
        True,
    )
    assert info.gpu is not None and (info.gpu.name, info.gpu.compute_capability) == ("NVIDIA H200", "9.0")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["engine", *FACTS]), st.none() | JSON, min_size=1, max_size=2), st.booleans())
def test_tampered_facts_are_read_or_refused(engine: Path, changes: dict[str, Any], removed: bool) -> None:
    facts = {key: value for key, value in FACTS.items() if not (removed and key in changes)}
    facts = changes.get("engine", {**facts, **({} if removed else changes)})
    path = manifest_path(engine)
    path.write_text(json.dumps({**json.loads(path.read_text()), "details": {"engine": facts}}))
    message = ""
    try:
        found = read_engine_info(engine)
    except ModelError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    else:
        assert found.batch == tuple(facts["batch"][key] for key in ("min", "opt", "max"))
        assert (found.flavor, found.version) == (facts["flavour"], facts["version"])
