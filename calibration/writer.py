"""Writes INT8 files with their spec and manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from calibration.equalize import note_steps, noted_steps
from runtime.backends.ort import OrtBackend
from runtime.manifest import Origin, atomic_pair, write_manifest
from runtime.spec import ModelSpec


def write_int8(
    model: onnx.ModelProto, spec: ModelSpec, output: Path, made_from: Mapping[str, Path], details: Mapping[str, Any]
) -> None:
    """Checks a model that `quantize` made and writes it, its spec inside and its manifest beside it.

    Args:
        model: the INT8 model; its properties are replaced by the spec's, but for how its channels were scaled.
        spec: of the INT8 model.
        output: the .onnx file.
        made_from: the files it was made from, by their role in the manifest.
        details: of the manifest.

    Raises:
        OutputError: it cannot be written.
    """
    steps = noted_steps(model)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(spec.to_metadata().items())))
    if steps:
        note_steps(model, steps)
    onnx.checker.check_model(model, full_check=True)
    origins = [Origin.of(role, path, output) for role, path in made_from.items()]
    with atomic_pair(output) as written:
        onnx.save(model, str(written))
        with OrtBackend(written):
            pass  # opening it checks its signature against its spec
        write_manifest(written, spec, origins, details)
