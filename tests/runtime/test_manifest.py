"""The manifest beside an exported file: what was written comes back, changes are found, damage is one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import InputError, ModelError
from runtime.manifest import find_changes, manifest_path, read_manifest, source, write_manifest
from runtime.spec import ModelSpec

SPEC = ModelSpec("m", ("cat", "dog"), (64, 96), (((1.0, 2.0),),) * 3)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A file made from another beside it and one elsewhere."""
    (tmp_path / "out").mkdir()
    (tmp_path / "w.pt").write_bytes(b"weights")
    (tmp_path / "out" / "m.onnx").write_bytes(b"model")
    file = tmp_path / "out" / "m.int8.onnx"
    file.write_bytes(b"quantised")
    sources = [source("weights", tmp_path / "w.pt", file), source("onnx", tmp_path / "out" / "m.onnx", file)]
    write_manifest(file, SPEC, sources, {"method": "entropy", "images": ["a.jpg"]})
    return file


def test_what_was_written_comes_back(exported: Path) -> None:
    manifest = read_manifest(manifest_path(exported))
    assert (manifest.name, manifest.size, manifest.spec) == ("m.int8.onnx", 9, SPEC)
    assert manifest.details == {"method": "entropy", "images": ["a.jpg"]}
    assert [item.role for item in manifest.made_from] == ["weights", "onnx"]
    assert manifest.made_from[1].name == "m.onnx"  # beside it: the folder may be moved as a whole
    assert Path(manifest.made_from[0].name).is_absolute()
    assert find_changes(manifest_path(exported)) == []


def test_the_same_again_gives_the_same_bytes(exported: Path) -> None:
    before = manifest_path(exported).read_bytes()
    manifest = read_manifest(manifest_path(exported))
    write_manifest(exported, manifest.spec, manifest.made_from, manifest.details)
    assert manifest_path(exported).read_bytes() == before


def test_changes_are_named(exported: Path, tmp_path: Path) -> None:
    exported.write_bytes(b"quantiseD")
    (tmp_path / "w.pt").write_bytes(b"other")
    first, second = find_changes(manifest_path(exported))
    assert "m.int8.onnx: changed" in first
    assert "w.pt (weights): changed" in second
    (tmp_path / "w.pt").unlink()  # a source that is gone proves nothing
    assert len(find_changes(manifest_path(exported))) == 1
    exported.unlink()
    assert find_changes(manifest_path(exported)) == [f"{exported}: missing"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"kind": "other"}', '{"kind": "yolov3-asff-manifest"}'])
def test_what_is_no_manifest_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(ModelError, match=r"m\.json: (not a manifest|manifest version)") as caught:
        read_manifest(tmp_path / "m.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such manifest"):
        read_manifest(tmp_path / "none.json")


def test_a_newer_version_is_refused(exported: Path) -> None:
    path = manifest_path(exported)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(ModelError, match="manifest version 2, this code reads 1"):
        read_manifest(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), JSON)
def test_a_tampered_manifest_is_read_or_refused_never_a_crash(exported: Path, data: st.DataObject, value: object) -> None:
    path = manifest_path(exported)
    original = path.read_text()
    content = json.loads(original)
    place = data.draw(st.sampled_from(["version", "file", "spec", "made_from", "details"]))
    if isinstance(content[place], dict) and data.draw(st.booleans()):
        content[place][data.draw(st.sampled_from(sorted(content[place])))] = value
    else:
        content[place] = value
    path.write_text(json.dumps(content))
    message = f"{path}: read"
    try:
        read_manifest(path)
    except ModelError as error:
        message = str(error)
    path.write_text(original)
    assert message.startswith(f"{path}: ")
