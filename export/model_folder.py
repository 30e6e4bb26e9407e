"""Folders that hold a model for another program: written whole, with the model's manifest."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import InputError, OutputError
from runtime.files import output_folder, sha256
from runtime.manifest import Origin, manifest_path, read_manifest, write_manifest
from runtime.spec import ModelSpec


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Gives a temporary folder that becomes `target` when the block ends; after an error nothing is left.

    Raises:
        InputError: `target` is there already.
        OutputError: it cannot be written.
    """
    if os.path.lexists(target):
        raise InputError(f"{target}: is there already; remove it, or choose another name")
    parent = output_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".new-") as temporary:
            folder = Path(temporary) / target.name
            folder.mkdir()
            yield folder
            os.rename(folder, target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; choose another output or free some space"
        ) from error


def copy_model(model: Path, spec: ModelSpec, copy: Path, place: Path) -> None:
    """Copies a model, and writes its manifest: that of the original with the original added to its origins.

    Args:
        model: the original.
        spec: of the model.
        copy: where it is written.
        place: where it goes at the end.
    """
    shutil.copyfile(model, copy)
    origins: Sequence[Origin] = ()
    details: Mapping[str, Any] = {}
    if manifest_path(model).is_file():
        earlier = read_manifest(manifest_path(model))
        if earlier.sha256 == sha256(model):  # otherwise it is of a file that was there before
            origins, details = earlier.made_from, earlier.details
    write_manifest(copy, spec, (Origin.of("model", model, place), *origins), details)
