"""Turns a verification into plain values: the content of `report.json`, and all of the page but its images."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from calibration.budget import FAILED, PASSED, UNDECIDED
from calibration.images import dataset_sha256
from export.accuracy.box_changes import KINDS, Record, by_image, match_detections
from export.accuracy.gate import Outcome, Verification
from export.accuracy.measure import Measurement, worst_class
from export.accuracy.operating import operating_threshold
from runtime.errors import InputError
from runtime.evaluation.matching import Matches
from runtime.evaluation.operating_point import measure_curve
from runtime.files import sha256
from runtime.manifest import manifest_path, read_manifest
from train import checkpoint

_TRAINING = ("recipe", "train_split", "val_split", "epochs", "size", "optimizer", "learning_rate", "batch", "mixup", "seed")

Detections = Mapping[int, list[Record]]

KIND = "yolov3-asff-verification"
VERSION = 2
_LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "numpy", "opencv-python-headless", "pycocotools")


def report_data(found: Verification) -> dict[str, Any]:
    """Collects everything that was measured, as JSON values.

    AP is in [0, 1], and -1 where the split has no such object; ΔAP and budgets are in points (hundredths of AP).
    """
    reference, detections = found.reference, detections_by_image(found)
    threshold = operating_threshold(found.spec)
    return {
        "kind": KIND,
        "version": VERSION,
        "passed": found.passed,
        "status": _status(found),
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
        "spec": {key: json.loads(value) for key, value in found.spec.to_metadata().items()},
        "training": _training(found.weights),
        "limits": {
            **dataclasses.asdict(found.limits.budgets),
            "confidence": found.limits.confidence,
            "accept_undecided": found.limits.accept_undecided,
            "allow_foreign": found.limits.allow_foreign,
            "operating": dict(found.limits.operating),
            "require_speedup": found.limits.require_speedup,
        },
        "operating": {"threshold": threshold, "stored": found.spec.operating_threshold is not None},
        "versions": _versions(),
        "reference": _measured(reference, threshold),
        "files": [_file(outcome, found, detections) for outcome in found.outcomes],
    }


def _status(found: Verification) -> str:
    """Sums up the verdicts: the worst of the files that ran."""
    given = {outcome.status for outcome in found.outcomes}
    return next((status for status in (FAILED, UNDECIDED) if status in given), PASSED)


def _training(weights: Path) -> dict[str, Any] | None:
    """Reads how the weights were trained; None where they are not a checkpoint of this project, which alone says so."""
    try:
        found = checkpoint.load(weights)
    except InputError:
        return None
    config = {name: getattr(found.config, name) for name in _TRAINING}
    return {**config, "epochs_completed": found.epoch, "best_ap": found.best_ap if found.best_ap >= 0 else None}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _measured(measurement: Measurement, threshold: float) -> dict[str, Any]:
    return {
        "name": measurement.name,
        "figures": measurement.evaluation.metrics,
        "per_class": measurement.evaluation.per_class,
        "detections": len(measurement.evaluation.results),
        "bytes": measurement.size,
        "milliseconds": round(measurement.milliseconds, 3),
        "difference": _finite(measurement.difference),
        "curve": sample_curve(measurement.evaluation.matches, threshold),
    }


def sample_curve(matches: Matches, threshold: float) -> dict[str, Any]:
    """Samples precision, recall and F1 of all classes together against the score threshold; None where one does not exist.

    Args:
        matches: of a model on the split.
        threshold: operating threshold, whose point is added.
    """
    curve = measure_curve(matches.by_area["all"])
    best = curve.best_f1()
    return {
        **curve.sample(),
        "at_threshold": curve.at(threshold).to_dict(),
        "best_f1": best.to_dict() if best else None,
    }


def _file(outcome: Outcome, found: Verification, detections: Mapping[str, Detections]) -> dict[str, Any]:
    manifest = _manifest(outcome)
    precision = outcome.spec.precision if outcome.spec else (manifest or {}).get("precision")
    data: dict[str, Any] = {
        "name": outcome.name,
        "file": str(outcome.file),
        "sha256": sha256(outcome.file),
        "bytes": outcome.file.stat().st_size,
        "precision": precision,
        "budget": found.limits.budgets.by_precision.get(precision or ""),
        "status": outcome.status,
        "reasons": list(outcome.reasons),
        "notes": list(outcome.notes),
        "criteria": [_finite(dataclasses.asdict(item)) for item in outcome.criteria],
        "operating": _finite(dataclasses.asdict(outcome.operating)) if outcome.operating else None,
        "speedup": dataclasses.asdict(outcome.speedup) if outcome.speedup else None,
        "consumers": [
            {"name": item.consumer, "figures": item.measurement.evaluation.metrics, "bounds": dataclasses.asdict(item.bounds)}
            for item in outcome.consumers
        ],
        "operating_threshold": outcome.spec.operating_threshold if outcome.spec else None,
        "foreign": outcome.spec is not None and outcome.spec.source_sha256 != found.spec.source_sha256,
        "made_with": list(outcome.spec.made_with) if outcome.spec else [],
        "manifest": manifest,
        "measured": None,
    }
    if outcome.measurement:
        worst = worst_class(found.reference, outcome.measurement)
        data["measured"] = {
            **_measured(outcome.measurement, operating_threshold(found.spec)),
            "change": outcome.measurement.delta_ap(found.reference),
            "worst_class": {"name": worst[0], "change": worst[1]} if worst else None,
            "changed_detections": _count_changes(detections[found.reference.name], detections[outcome.name]),
        }
    return data


def detections_by_image(found: Verification) -> dict[str, Detections]:
    """Groups the detections from the operating threshold on by model, the reference first, and image id."""
    threshold = operating_threshold(found.spec)
    measurements = [found.reference, *(outcome.measurement for outcome in found.outcomes if outcome.measurement)]
    return {measurement.name: by_image(measurement.evaluation.results, threshold) for measurement in measurements}


def _count_changes(before: Detections, after: Detections) -> dict[str, int]:
    """Counts the detections of the whole split that were kept, rescored, appeared and vanished."""
    counts = Counter(
        box.kind
        for image_id in before.keys() | after.keys()
        for box in match_detections(before.get(image_id, []), after.get(image_id, []))
    )
    return {kind: counts[kind] for kind in KINDS}


def _manifest(outcome: Outcome) -> dict[str, Any] | None:
    """Reads how the file was made from its manifest; None where no manifest can be read."""
    try:
        manifest = read_manifest(manifest_path(outcome.file))
    except InputError:  # the gate has noted it
        return None
    sources = [vars(item) for item in manifest.made_from]
    return {"precision": manifest.spec.precision, "made_from": sources, "details": _finite(manifest.details)}


def _finite(value: Any) -> Any:
    """Replaces infinity and NaN, which JSON cannot hold, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
