"""An operating threshold in an exported file: in its metadata, in its manifest, in neither if one cannot be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.open import open_backend
from runtime.errors import InputError, ModelError, OutputError
from runtime.evaluation.operating_point import Curve
from runtime.evaluation.store import check_storable, store_threshold
from runtime.files import sha256
from runtime.manifest import Origin, find_changes, manifest_path, read_manifest, write_manifest
from runtime.spec import ModelSpec

DETAILS = {"parity": {"worst": 1e-6}, "settings": {"size": None}}


@pytest.fixture
def model(write_onnx: Callable[..., Path], make_spec: Callable[..., ModelSpec], tmp_path: Path) -> Path:
    """A model with its manifest, and the weights that it was made from."""
    (tmp_path / "w.pt").write_bytes(b"weights")
    file = write_onnx(tmp_path / "m.onnx")
    write_manifest(file, make_spec(), [Origin.of("weights", tmp_path / "w.pt", file)], DETAILS)
    return file


def listed(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_file_and_its_manifest_store_it(model: Path, make_spec: Callable[..., ModelSpec], tmp_path: Path) -> None:
    check_storable(model)
    store_threshold(model, 0.375)
    expected = make_spec(operating_threshold=0.375)
    with open_backend(model) as backend:
        assert backend.spec == expected
    manifest = read_manifest(manifest_path(model))
    assert (manifest.spec, manifest.sha256, manifest.size) == (expected, sha256(model), model.stat().st_size)
    assert ([item.role for item in manifest.made_from], manifest.details) == (["weights"], DETAILS)
    assert find_changes(manifest_path(model)) == []
    assert sorted(listed(tmp_path)) == ["m.onnx", "m.onnx.json", "w.pt"]


def test_storing_another_one_leaves_nothing_of_the_first(model: Path, tmp_path: Path) -> None:
    store_threshold(model, 0.5)
    once = listed(tmp_path)
    store_threshold(model, 0.123456)
    assert listed(tmp_path) != once
    store_threshold(model, 0.5)
    assert listed(tmp_path) == once


def test_the_manifest_keeps_the_curve(model: Path) -> None:
    curve = Curve(np.array([0.9, 0.4]), np.array([1, 2]), np.array([0, 1]), 2)
    store_threshold(model, 0.5, curve)
    store_threshold(model, 0.6)
    details = read_manifest(manifest_path(model)).details
    assert details == {**DETAILS, "operating_curve": curve.sample()}
    at = [details["operating_curve"]["thresholds"].index(value) for value in (0.4, 0.5, 0.95)]
    shares = {name: [details["operating_curve"][name][index] for index in at] for name in ("precision", "recall")}
    assert shares == {"precision": [pytest.approx(2 / 3), 1.0, None], "recall": [1.0, 0.5, 0.0]}


def test_a_file_without_manifest(model: Path, tmp_path: Path) -> None:
    manifest_path(model).unlink()
    store_threshold(model, 1)
    with open_backend(model) as backend:
        assert backend.spec.operating_threshold == 1
    assert sorted(listed(tmp_path)) == ["m.onnx", "w.pt"]


def test_a_file_from_before_this_field(
    write_onnx: Callable[..., Path], make_spec: Callable[..., ModelSpec], tmp_path: Path
) -> None:
    metadata = make_spec().to_metadata()
    del metadata["operating_threshold"], metadata["head"]
    old = write_onnx(tmp_path / "old.onnx", metadata={**metadata, "format_version": "1"})
    store_threshold(old, 0.75)
    with open_backend(old) as backend:
        assert backend.spec == make_spec(operating_threshold=0.75)


def test_an_engine_stores_it_in_its_manifest(make_spec: Callable[..., ModelSpec], tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"plan")
    write_manifest(engine, make_spec(), [], {"engine": {"version": "10"}})
    check_storable(engine)
    store_threshold(engine, 0.25)
    assert engine.read_bytes() == b"plan"
    manifest = read_manifest(manifest_path(engine))
    assert (manifest.spec.operating_threshold, manifest.details) == (0.25, {"engine": {"version": "10"}})
    assert find_changes(manifest_path(engine)) == []


def test_a_manifest_of_another_file_is_never_made_to_fit(model: Path, tmp_path: Path) -> None:
    model.write_bytes(model.read_bytes() + b"\x08\x09")
    before = listed(tmp_path)
    for call in (check_storable, lambda file: store_threshold(file, 0.5)):
        with pytest.raises(ModelError, match=r"m\.onnx: is not the file that m\.onnx\.json describes"):
            call(model)
    assert listed(tmp_path) == before


def test_what_cannot_be_stored_leaves_everything_as_it_was(
    model: Path, tmp_path: Path, full_disk: Callable[..., AbstractContextManager[None]]
) -> None:
    before = listed(tmp_path)
    with full_disk(), pytest.raises(OutputError, match=r"cannot write .*m\.onnx"):
        store_threshold(model, 0.5)
    assert listed(tmp_path) == before
    for wrong in (0, -1, 1.01, float("nan")):
        with pytest.raises(InputError, match="operating threshold: expected a number above 0 and at most 1"):
            store_threshold(model, wrong)
    assert listed(tmp_path) == before
    manifest_path(model).write_text(json.dumps({"kind": "other"}))
    with pytest.raises(ModelError, match="not a manifest"):
        check_storable(model)
    with pytest.raises(InputError, match="no such manifest"):
        check_storable(tmp_path / "w.engine")
