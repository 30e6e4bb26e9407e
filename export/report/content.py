"""The figures of a verification as plain values: what `report.json` holds, and all that the page is drawn from but images."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from calibration.images import dataset_sha256
from export.accuracy.box_changes import KINDS, by_image, find_changes
from export.accuracy.gate import Outcome, Verification
from export.accuracy.measure import Measurement, worst_class
from runtime.errors import InputError
from runtime.files import sha256
from runtime.manifest import manifest_path, read_manifest

KIND = "yolov3-asff-verification"
VERSION = 1
_LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "numpy", "opencv-python-headless", "pycocotools")


def content(found: Verification) -> dict[str, Any]:
    """Everything that was measured, JSON values alone.

    AP figures are in [0, 1] and -1 where the split has no such object; changes and budgets are in points (hundredths of AP).
    """
    reference = found.reference
    return {
        "kind": KIND,
        "version": VERSION,
        "passed": found.passed,
        "model": found.spec.name,
        "input_size": list(found.spec.input_size),
        "data": {
            "root": str(found.dataset.root),
            "split": found.dataset.split,
            "images": reference.evaluation.images,
            "skipped": list(reference.evaluation.skipped),
            "sha256": dataset_sha256(found.dataset),
        },
        "weights": {"file": str(found.weights), "sha256": found.spec.source_sha256},
        "budgets": dict(found.budgets),
        "versions": _versions(),
        "reference": _measured(reference),
        "files": [_file(outcome, found) for outcome in found.outcomes],
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _measured(measurement: Measurement) -> dict[str, Any]:
    return {
        "name": measurement.name,
        "figures": measurement.evaluation.metrics,
        "per_class": measurement.evaluation.per_class,
        "detections": len(measurement.evaluation.results),
        "bytes": measurement.size,
        "milliseconds": round(measurement.milliseconds, 3),
        "difference": _finite(measurement.difference),
    }


def _file(outcome: Outcome, found: Verification) -> dict[str, Any]:
    manifest = _manifest(outcome)
    precision = outcome.spec.precision if outcome.spec else (manifest or {}).get("precision")
    described: dict[str, Any] = {
        "name": outcome.name,
        "file": str(outcome.file),
        "sha256": sha256(outcome.file),
        "bytes": outcome.file.stat().st_size,
        "precision": precision,
        "budget": found.budgets.get(precision or ""),
        "status": outcome.status,
        "reasons": list(outcome.reasons),
        "notes": list(outcome.notes),
        "made_with": list(outcome.spec.made_with) if outcome.spec else [],
        "manifest": manifest,
        "measured": None,
    }
    if outcome.measurement:
        worst = worst_class(found.reference, outcome.measurement)
        described["measured"] = {
            **_measured(outcome.measurement),
            "change": outcome.measurement.delta_ap(found.reference),
            "worst_class": {"name": worst[0], "change": worst[1]} if worst else None,
            "changed_detections": _changed(found.reference, outcome.measurement),
        }
    return described


def _changed(reference: Measurement, measurement: Measurement) -> dict[str, int]:
    """How many detections worth looking at were kept, rescored, appeared and vanished over the whole split."""
    before, after = by_image(reference.evaluation.results), by_image(measurement.evaluation.results)
    counts = Counter(
        box.kind
        for image_id in before.keys() | after.keys()
        for box in find_changes(before.get(image_id, []), after.get(image_id, []))
    )
    return {kind: counts[kind] for kind in KINDS}


def _manifest(outcome: Outcome) -> dict[str, Any] | None:
    """What the file's manifest says of its making; None where there is none that can be read."""
    try:
        manifest = read_manifest(manifest_path(outcome.file))
    except InputError:  # the gate has noted it
        return None
    sources = [vars(item) for item in manifest.made_from]
    return {"precision": manifest.spec.precision, "made_from": sources, "details": _finite(manifest.details)}


def _finite(value: Any) -> Any:
    """JSON values with None for what JSON cannot hold: a layer that quantization leaves alone has an infinite ratio."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
