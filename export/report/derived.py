"""Derives from the data of `report.json` what both the page and the Markdown show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Data = Mapping[str, Any]

_CLASSES = 20  # in the charts; a table of the page holds all of them


def class_deltas(data: Data) -> dict[str, dict[str, float]]:
    """Computes ΔAP in points by class and file, for the classes with objects and the files that ran."""
    per_class = {file["name"]: file["measured"]["per_class"] for file in data["files"] if file["measured"]}
    return {
        name: {file: (after[name] - before) * 100 for file, after in per_class.items()}
        for name, before in data["reference"]["per_class"].items()
        if before >= 0
    }


def most_changed(deltas: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Chooses the classes with the largest ΔAP in any file, the worst loss first."""
    largest = sorted(deltas, key=lambda name: -max(map(abs, deltas[name].values()), default=0))
    return sorted(largest[:_CLASSES], key=lambda name: min(deltas[name].values(), default=0))


def calibrations(data: Data) -> dict[str, Data]:
    """Collects what calibration recorded in the manifests, by file name."""
    details = {file["name"]: (file["manifest"] or {}).get("details") or {} for file in data["files"]}
    found = {name: values.get("calibration") for name, values in details.items()}
    return {name: values for name, values in found.items() if isinstance(values, Mapping) and values}
