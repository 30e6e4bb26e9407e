"""The model file that is served: its hash, and whether another one has taken its place since it was opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

from runtime.errors import DetectorError
from runtime.evaluation.store import CURVE_DETAIL
from runtime.files import PathLike, sha256
from runtime.manifest import manifest_path, read_manifest

AS_OPENED, REPLACED, MISSING = "as opened", "replaced", "missing"


class ModelFile:
    """Identity of a model file; make it before the file is opened.

    Args:
        path: of the file.

    Attributes:
        name: of the file, without its folder.
        sha256: of its bytes when this was made.
        curve: of its operating point, from the manifest beside it; None where it has none.
    """

    def __init__(self, path: PathLike) -> None:
        self._path = Path(path)
        self.name = self._path.name
        self._stamp = self._seen = _stamp(self._path)
        self.sha256 = self._seen_hash = sha256(path)
        self.curve = _curve(self._path, self.sha256)

    def state(self) -> str:
        """Compares the file with what was opened; reads it again only where its date, size or place has changed."""
        try:
            stamp = _stamp(self._path)
            if stamp is not None and stamp != self._seen:
                self._seen_hash, self._seen = sha256(self._path), stamp
        except DetectorError:
            stamp = None
        if stamp is None:
            return MISSING
        return AS_OPENED if self._seen_hash == self.sha256 else REPLACED


def _stamp(path: Path) -> Optional[tuple[int, ...]]:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _curve(path: Path, digest: str) -> Optional[dict[str, Any]]:
    try:
        manifest = read_manifest(manifest_path(path))
    except DetectorError:  # there need not be one
        return None
    curve = manifest.details.get(CURVE_DETAIL) if manifest.sha256 == digest else None
    return dict(curve) if isinstance(curve, dict) else None
