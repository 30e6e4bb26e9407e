"""Hashes what a run depends on: its data and the code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from runtime.datasets.dataset import Dataset
from runtime.errors import InputError
from runtime.files import sha256

CONTENT_BYTES = 1 << 30
"""Images of at most so many bytes are hashed by content; of larger sets the length of every file counts."""

_PACKAGES = ("runtime", "train")


def data_hashes(splits: Sequence[Dataset]) -> dict[str, str]:
    """Hashes the `labels` and the `images` of the splits, wherever their folder lies."""
    labels, paths = hashlib.sha256(), []
    for split in splits:
        names, records = [], bytearray()
        for image in split.images:  # once: they are made anew at every access
            paths.append(image.path)
            names.append(os.path.relpath(image.path, split.root))
            records += f"{image.width} {image.height} {image.image_id}".encode()
            records += _bytes(image.boxes, image.class_ids, image.crowd)
        truth = split.truth
        labels.update(repr((split.class_names, names)).encode())
        labels.update(records)
        labels.update(_bytes(truth.image_ids, truth.class_ids, truth.boxes, truth.areas, truth.crowd))
    return {"labels": labels.hexdigest(), "images": _images_hash(paths)}


def _bytes(*arrays: NDArray[Any]) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


def _images_hash(paths: Sequence[Path]) -> str:
    sizes = [_size(path) for path in paths]
    digest = hashlib.sha256(repr(sizes).encode())
    if sum(sizes) <= CONTENT_BYTES:
        for path, size in zip(paths, sizes):
            digest.update(_content(path) if size >= 0 else b"")
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _content(path: Path) -> bytes:
    try:
        return sha256(path).encode()
    except InputError:  # no regular file, or not readable, which training reports
        return b"unreadable"


def code_hash() -> str:
    """Hashes the Python files that training runs."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for file in sorted(file for package in _PACKAGES for file in (root / package).rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
