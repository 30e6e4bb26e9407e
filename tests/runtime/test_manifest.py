"""Manifest: round trip, changed files, damaged manifests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import InputError, ModelError
from runtime.manifest import Origin, find_changes, manifest_path, read_manifest, write_manifest
from runtime.spec import ModelSpec

SPEC = ModelSpec("m", ("cat", "dog"), (64, 96), (((1.0, 2.0),),) * 3)
ORIGINAL = json.dumps(
    {
        "kind": "yolov3-asff-manifest",
        "version": 1,
        "file": {"name": "m.int8.onnx", "sha256": "0" * 64, "bytes": 9},
        "spec": {key: json.loads(text) for key, text in SPEC.to_metadata().items()},
        "made_from": [{"role": "onnx", "name": "m.onnx", "sha256": "1" * 64}],
        "details": {"method": "entropy", "engine": {"batch": {"min": 1, "opt": 1, "max": 8}}},
    }
).encode()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A file made from another beside it and one elsewhere."""
    (tmp_path / "out").mkdir()
    (tmp_path / "w.pt").write_bytes(b"weights")
    (tmp_path / "out" / "m.onnx").write_bytes(b"model")
    file = tmp_path / "out" / "m.int8.onnx"
    file.write_bytes(b"quantized")
    origins = [Origin.of("weights", tmp_path / "w.pt", file), Origin.of("onnx", tmp_path / "out" / "m.onnx", file)]
    write_manifest(file, SPEC, origins, {"method": "entropy", "images": ["a.jpg"]})
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
    exported.write_bytes(b"quantizeD")
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


@pytest.mark.parametrize("version", [0, 2, True, 1.0, "1", None, [1] * 10_000])
def test_another_version_is_refused(version: object, exported: Path) -> None:
    path = manifest_path(exported)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    with pytest.raises(ModelError, match=r"manifest version .+, this code reads 1; update the code") as caught:
        read_manifest(path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 1, "version": 2', "a key is given twice"),
        ('"role": "onnx"', '"role": "onnx", "role": "weights"', "a key is given twice"),
        ('"bytes": 9', '"bytes": 1e999', "of inf bytes"),
        ('"bytes": 9', '"bytes": -1', "of -1 bytes"),
        ('"bytes": 9', '"bytes": NaN', "of nan bytes"),
        ('"bytes": 9', f'"bytes": {"9" * 5000}', r"not readable as JSON|of 9+\.\.\.9+ bytes"),
        ('"name": "m.int8.onnx"', '"name": "../../etc/passwd"', "expected one beside its manifest"),
        ('"name": "m.int8.onnx"', '"name": "/dev/zero"', "expected one beside its manifest"),
        ('"name": "m.int8.onnx"', '"name": ""', "expected one beside its manifest"),
        ('"name": "m.onnx"', '"name": "m\\u0000.onnx"', "is no name of a file"),
        ('"method": "entropy"', f'"method": {"[" * 5000}', "not a manifest that can be read"),
        ('"details"', '"more"', "KeyError: 'details'"),
        ("[\n   64,", "[\n   1000000000,", "input_size must be"),
    ],
)
def test_tampering_is_named(old: str, new: str, message: str, exported: Path) -> None:
    path = manifest_path(exported)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ModelError, match=message) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_what_is_no_text_or_too_large_is_refused(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = manifest_path(exported)
    monkeypatch.setattr("runtime.manifest._LARGEST", path.stat().st_size)
    read_manifest(path)
    path.write_text(path.read_text() + " ")
    with pytest.raises(ModelError, match=r"not a manifest that can be read \(cannot be read \(it is larger than"):
        read_manifest(path)
    path.write_bytes(b"\x89PNG\xff\xfe\0")
    with pytest.raises(ModelError, match=r"is no UTF-8 text \(byte 0\)"):
        read_manifest(path)


def test_what_is_no_file_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("folder", "loop", "pipe"):
        with pytest.raises(InputError, match=rf"{name}\.json: no such manifest"):
            read_manifest(tmp_path / f"{name}.json")


@pytest.mark.parametrize("name", ["", "..", "/", "/dev/zero", "x" * 5000, "loop", "\ud800", "a\nb"])
def test_sources_that_are_no_files_prove_nothing(name: str, exported: Path) -> None:
    (exported.parent / "loop").symlink_to("loop")
    write_manifest(exported, SPEC, [Origin("weights", name, "0")], {})
    assert find_changes(manifest_path(exported)) == []


def test_a_file_that_may_not_be_read_proves_nothing(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (exported.parent / "m.onnx").write_bytes(b"changed")
    assert len(find_changes(manifest_path(exported))) == 1
    monkeypatch.setattr("os.access", lambda path, mode: os.path.basename(path) != "m.onnx")  # root may read everything
    assert find_changes(manifest_path(exported)) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """The ways to everything in a JSON value but itself."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_tampered_manifest_is_read_or_refused_never_a_crash(exported: Path, data: st.DataObject) -> None:
    path = manifest_path(exported)
    content = json.loads(ORIGINAL)
    *way, last = data.draw(st.sampled_from(list(places(content))))
    inner = content
    for step in way:
        inner = inner[step]
    if data.draw(st.booleans()):
        inner[last] = data.draw(JSON)
    else:
        del inner[last]
    path.write_text(json.dumps(content))
    check_read_or_refused(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(ORIGINAL)), st.integers(0, 40), st.binary(max_size=20))
def test_damaged_bytes_are_read_or_refused(exported: Path, start: int, length: int, bytes_: bytes) -> None:
    path = manifest_path(exported)
    path.write_bytes(ORIGINAL[:start] + bytes_ + ORIGINAL[start + length :])
    check_read_or_refused(path)


def check_read_or_refused(path: Path) -> None:
    """What is read is what is there; what is refused is one line that names the file."""
    message = ""
    try:
        manifest = read_manifest(path)
    except ModelError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{path}: ") and "\n" not in message
        return
    content = json.loads(path.read_text())
    assert json.dumps(manifest.details) == json.dumps(content["details"])
    assert [vars(item) for item in manifest.made_from] == [
        {key: item[key] for key in ("role", "name", "sha256")} for item in content["made_from"]
    ]
    described = {key: json.loads(text) for key, text in manifest.spec.to_metadata().items()}
    assert described == {key: content["spec"].get(key) for key in described}  # null: a preference may be missing
