"""Stores an operating threshold in an exported file and in the manifest beside it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Optional

from runtime.backends.onnx_metadata import replace_metadata
from runtime.backends.triton import served_address
from runtime.errors import InputError, ModelError
from runtime.evaluation.operating_point import Curve
from runtime.files import LARGEST_MODEL, PathLike, atomic_write, check_writable, read_bytes, sha256
from runtime.manifest import Manifest, atomic_pair, manifest_path, read_manifest, write_manifest

log = logging.getLogger(__name__)

CURVE_DETAIL = "operating_curve"
"""Detail of a manifest: precision, recall and F1 by score threshold on the split that the threshold was chosen on."""

_FIELD = "operating_threshold"


def check_storable(file: PathLike) -> None:
    """Proves before long work that a threshold can be stored in an exported file.

    Raises:
        InputError: it is a served model, whose file is elsewhere.
        ModelError: the manifest beside it cannot be read, or describes another file.
        OutputError: its folder cannot be written to.
    """
    if served_address(file) is not None:
        raise InputError(f"{file}: a threshold is stored in a model's file; give the file, and serve it again")
    check_writable(file)
    _own_manifest(Path(file))


def store_threshold(file: PathLike, threshold: float, curve: Optional[Curve] = None) -> None:
    """Stores an operating threshold in an `.onnx` file and its manifest; that of an `.engine` is in its manifest alone.

    Either both are written or neither. The rest of the file stays as it is, byte for byte.

    Args:
        file: the exported file.
        threshold: in (0, 1].
        curve: that it was chosen on; its samples become the detail `CURVE_DETAIL` of the manifest, if there is one.

    Raises:
        InputError: a threshold that is not in (0, 1].
        ModelError: see `check_storable`, or the file is damaged.
        OutputError: it cannot be written.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"operating threshold: expected a number above 0 and at most 1, got {threshold}")
    path = Path(file)
    manifest = _own_manifest(path)
    if path.suffix == ".onnx":
        _store_in_onnx(path, threshold, manifest, curve)
        log.info("files made from %s before, such as INT8 files and engines, keep their threshold until made again", path)
    elif manifest:
        _write_manifest(path, threshold, manifest, curve)
    log.info("%s stores the operating threshold %.8g", path, threshold)


def _own_manifest(path: Path) -> Optional[Manifest]:
    """Reads the manifest beside a file; None if an ONNX file has none."""
    beside = manifest_path(path)
    if not beside.is_file() and path.suffix == ".onnx":
        return None
    manifest = read_manifest(beside)
    if manifest.sha256 != sha256(path):
        raise ModelError(f"{path}: is not the file that {beside.name} describes; copy both again, or make it again")
    return manifest


def _store_in_onnx(path: Path, threshold: float, manifest: Optional[Manifest], curve: Optional[Curve]) -> None:
    try:
        content = replace_metadata(read_bytes(path, LARGEST_MODEL), {_FIELD: json.dumps(threshold)})
    except ValueError as error:
        raise ModelError(f"{path}: not an ONNX file, or a damaged one ({error})") from error
    with atomic_pair(path) if manifest else atomic_write(path) as written:
        written.write_bytes(content)
        if manifest:
            _write_manifest(written, threshold, manifest, curve)


def _write_manifest(path: Path, threshold: float, manifest: Manifest, curve: Optional[Curve]) -> None:
    spec = manifest.spec.replace(**{_FIELD: threshold})
    details = {**manifest.details, **({CURVE_DETAIL: curve.sample()} if curve else {})}
    write_manifest(path, spec, manifest.made_from, details)
