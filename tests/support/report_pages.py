"""Made-up verifications for the tests of the report, and readers of the page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from calibration.budget import FAILED, PASSED, UNDECIDED
from export.accuracy.measure import Measurement
from export.accuracy.operating import OperatingChange
from export.accuracy.speed import Speedup
from export.accuracy.verdict import Criterion
from runtime.evaluation.bootstrap import Bounds
from runtime.evaluation.coco import METRICS, Evaluation
from tests.support.matches import make_matches

NASTY = "<script>alert('1')</script>&\""
CALIBRATION = {
    "method": "entropy",
    "images": [{"name": "1.png", "sha256": "ab"}],
    "seed": 0,
    "target": "tensorrt",
    "ranges": {"first": {"low": -2.0, "high": 2.0}},
    "histograms": {
        "first": {"edges": [-4.0, 4.0], "counts": [2 ** min(i, 63 - i) for i in range(64)], "threshold": 2.0},
        NASTY: {"edges": [0.0, 1.0], "counts": [0] * 64, "threshold": 5.0},
    },
    "float_layers": ["a"],
    "half_layers": ["b"],
    "sensitivity": [
        {"layer": "a", "error": 0.095, "ap_drop": 0.25, "bytes": 10},
        {"layer": "b", "error": 0.3, "ap_drop": None, "bytes": 10},
        {"layer": NASTY, "error": 0.0, "ap_drop": None, "bytes": 10},
        {"layer": "untouched", "snr_db": 9.5, "ap_drop": None, "bytes": 10},
    ],
}


# Right, wrong, right of 2 objects; INT8 has them at lower scores.
MATCHES = {
    name: make_matches([score * factor for score in (0.9, 0.6, 0.4)], [True, False, True], objects=2)
    for name, factor in (("PyTorch", 1.0), ("good.onnx", 1.0), ("bad.onnx", 0.5))
}


def measured(name: str, ap: float, results: list[dict[str, Any]], difference: float | None = None) -> Measurement:
    metrics = dict.fromkeys(METRICS, ap) | {"APs": -1.0}
    per_class = {"cat": ap, NASTY: ap / 2, "unseen": -1.0}
    evaluation = Evaluation(metrics, per_class, 2, ("3.png: the file is empty",), results, MATCHES[name])
    return Measurement(name, evaluation, 2_000_000, 3.0, difference)


def detection(image: int, left: float, score: float, category: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [left, 10.0, 40.0, 30.0], "score": score}


def criterion(name: str, status: str, budget: float, lower: float, upper: float) -> Criterion:
    return Criterion(name, status, budget, Bounds((lower + upper) / 2, 0.1, lower, upper, 0.95))


GOOD = (criterion("AP", PASSED, 0.05, -0.04, 0.04),)
BAD = (
    criterion("AP", FAILED, 0.5, -24, -16),
    Criterion(f"AP of {NASTY}", UNDECIDED, 0.2, None, "no object"),
    criterion("AP of cat", UNDECIDED, 0.0, -1, 1),
)


def change(vanished: float, f1: float) -> OperatingChange:
    """A change of the given share and F1, in which nothing appeared, and which has no class to change."""

    def bounds(estimate: float, error: float) -> Bounds:
        return Bounds(estimate, error, estimate - error, estimate + error, 0.95)

    values = {"vanished": bounds(-vanished, 2 * vanished), "appeared": bounds(0.0, 0.0), "f1": bounds(f1, 1.0)}
    return OperatingChange(0.25, 3, {**values, "reclassified": bounds(float("nan"), float("nan"))})


OPERATING = {"good.onnx": change(0.0, 0.0), "bad.onnx": change(33.333, -0.0004)}
SPEED = {"bad.onnx": Speedup(0.8, 0.7, 1.25)}


def elements(page: Path, name: str) -> list[ET.Element]:
    return list(ET.parse(page).getroot().iter(name))


def words(page: Path) -> str:
    return " ".join("".join(ET.parse(page).getroot().itertext()).split())


def table_rows(page: Path, label: str) -> list[list[str]]:
    (frame,) = [item for item in elements(page, "div") if item.get("aria-label") == label]
    return [[" ".join("".join(cell.itertext()).split()) for cell in row] for row in frame.findall("./table/tbody/tr")]
