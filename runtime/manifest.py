"""Manifest of an exported file: its spec, its origins and their hashes, in `<file>.json` beside it."""

from __future__ import annotations

import contextlib
import json
import os
import reprlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import InputError, ModelError, OutputError
from runtime.files import SMALL_FILE, PathLike, check_writable, read_json, sha256, write_json
from runtime.spec import ModelSpec

_KIND = "yolov3-asff-manifest"
_VERSION = 1
_LARGEST = SMALL_FILE  # room for the names of 200,000 calibration images


@dataclass(frozen=True)
class Origin:
    """A file that an exported file was made from.

    Attributes:
        role: its part in the making: `weights` or `onnx`.
        name: its path, relative to the manifest's folder where the file lies in that.
        sha256: of its bytes.
    """

    role: str
    name: str
    sha256: str

    @classmethod
    def of(cls, role: str, path: PathLike, exported: PathLike) -> Origin:
        """Hashes the file `path`, which the file `exported` was made from."""
        full, folder = Path(path).resolve(), Path(exported).resolve().parent
        name = full.relative_to(folder) if full.is_relative_to(folder) else full
        return cls(role, str(name), sha256(full))


@dataclass(frozen=True)
class Manifest:
    """Manifest of an exported file.

    Attributes:
        name: of the exported file, which lies beside its manifest.
        sha256: of its bytes.
        size: in bytes.
        spec: of the model.
        made_from: the files it was made from.
        details: free-form information from its maker, such as parity or calibration; values that JSON can hold.
    """

    name: str
    sha256: str
    size: int
    spec: ModelSpec
    made_from: tuple[Origin, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def manifest_path(file: PathLike) -> Path:
    """Returns the path of the manifest of an exported file."""
    return Path(f"{file}.json")


def write_manifest(file: PathLike, spec: ModelSpec, made_from: Sequence[Origin], details: Mapping[str, Any]) -> Manifest:
    """Hashes `file` and writes its manifest beside it; the same inputs give the same bytes."""
    path = Path(file)
    manifest = Manifest(path.name, sha256(path), path.stat().st_size, spec, tuple(made_from), details)
    content = {
        "kind": _KIND,
        "version": _VERSION,
        "file": {"name": manifest.name, "sha256": manifest.sha256, "bytes": manifest.size},
        "spec": {key: json.loads(value) for key, value in spec.to_metadata().items()},
        "made_from": [vars(item) for item in made_from],
        "details": dict(details),
    }
    write_json(manifest_path(path), content)
    return manifest


@contextlib.contextmanager
def atomic_pair(file: PathLike) -> Iterator[Path]:
    """Yields a temporary path; what is written there with `write_manifest` replaces `file` and its manifest on success.

    The manifest goes first. So whenever the process is killed, the old pair or the new one is there, or a manifest whose hash
    says that it is not of the file beside it (see `find_changes`). On any other failure the old pair stays.

    Raises:
        OutputError: one of the two cannot be written.
    """
    target = Path(file)
    check_writable(target)
    check_writable(manifest_path(target))
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as folder:
            written = Path(folder) / target.name
            yield written
            _replace_pair(written, target, Path(folder) / "earlier")
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; choose another output or free some space"
        ) from error


def _replace_pair(written: Path, target: Path, earlier: Path) -> None:
    beside = manifest_path(target)
    if beside.exists():
        shutil.copyfile(beside, earlier)
    os.replace(manifest_path(written), beside)
    try:
        os.replace(written, target)
    except BaseException:
        if earlier.exists():
            os.replace(earlier, beside)
        else:
            os.unlink(beside)
        raise


def read_manifest(path: PathLike) -> Manifest:
    """Reads and validates a manifest.

    Raises:
        InputError: no such file.
        ModelError: too large, not JSON, not a manifest, of a newer version, or a field is missing or of a wrong type.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such manifest")
    try:
        content = read_json(path, _LARGEST, _object)
    except InputError as error:
        raise ModelError(f"{path}: not a manifest that can be read ({str(error).removeprefix(f'{path}: ')})") from error
    try:
        return _parse(content)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path}: not a manifest that can be read ({type(error).__name__}: {error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object, and refuses a key that is given twice: readers differ in which value counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _parse(content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise ModelError("not a manifest of this project; expected the .json written beside an exported file")
    version = content["version"]
    if type(version) is not int or version != _VERSION:
        raise ModelError(f"manifest version {reprlib.repr(version)}, this code reads {_VERSION}; update the code")
    spec = ModelSpec.from_metadata({key: json.dumps(value) for key, value in _mapping(content["spec"]).items()})
    origins = tuple(Origin(*(_text(item[key]) for key in ("role", "name", "sha256"))) for item in content["made_from"])
    file = _mapping(content["file"])
    name, size = _text(file["name"]), file["bytes"]
    if not name or Path(name).name != name or type(size) is not int or not 0 <= size < 1 << 63:
        raise ValueError(f"file {reprlib.repr(name)} of {reprlib.repr(size)} bytes; expected one beside its manifest")
    return Manifest(name, _text(file["sha256"]), size, spec, origins, _mapping(content["details"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {type(value).__name__}")
    if "\0" in value:
        raise ValueError(f"{reprlib.repr(value)} is no name of a file")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return value


def find_changes(path: PathLike) -> list[str]:
    """Lists the exported file and those of its origins that changed since the manifest was written.

    An origin that is gone is no change. It may lie anywhere: it is only hashed.

    Returns:
        One line a change.
    """
    manifest, folder = read_manifest(path), Path(path).resolve().parent
    file = folder / manifest.name
    if not file.is_file():
        return [f"{file}: missing"]
    found = [] if sha256(file) == manifest.sha256 else [f"{file}: changed since it was made; make it again"]
    for item in manifest.made_from:
        path = folder / item.name
        if _is_readable(path) and sha256(path) != item.sha256:
            found.append(f"{path} ({item.role}): changed since {manifest.name} was made from it")
    return found


def _is_readable(path: Path) -> bool:
    """Returns whether this is a file that may be read; False for a name that no file can have."""
    return os.path.isfile(path) and os.access(path, os.R_OK)
