"""Writes the plots of an evaluation, and the values in them, into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.evaluation.confusion import BACKGROUND
from runtime.evaluation.operating_point import IOU, Curve, Curves, OperatingPoint, number_or_none
from runtime.files import write_json
from runtime.media.image import write_image
from runtime.viz.accuracy_plots import describe, plot_f1, plot_precision_recall
from runtime.viz.confusion_plot import plot_confusion

_MOST_POINTS = 2000  # of a curve in the file: more than a plot has pixels


def write_plots(
    folder: Path, curves: Curves, chosen: OperatingPoint, counts: NDArray[np.float64], class_names: Sequence[str]
) -> None:
    """Writes `precision-recall.png`, `f1.png`, `confusion.png`, and `curves.json` with their values.

    Args:
        folder: where to.
        curves: of the model on a split.
        chosen: its operating point.
        counts: the confusion matrix at that point, see `runtime.evaluation.confusion.confusion_matrix`.
        class_names: of the matrix's classes.
    """
    plots = {
        "precision-recall": plot_precision_recall(curves, chosen),
        "f1": plot_f1(curves, chosen),
        "confusion": plot_confusion(counts, class_names, describe(chosen)),
    }
    for name, image in plots.items():
        write_image(folder / f"{name}.png", image)
    confusion = {"classes": [*class_names, BACKGROUND], "counts": [[_count(value) for value in row] for row in counts.tolist()]}
    content = {
        "iou": IOU,
        "operating_point": chosen.to_dict(),
        "all": _values(curves.overall),
        "per_class": {name: _values(curve) for name, curve in curves.per_class.items()},
        "confusion": confusion,
    }
    write_json(folder / "curves.json", content)


def _count(value: float) -> Any:
    return None if np.isnan(value) else int(value)


def _values(curve: Curve) -> dict[str, Any]:
    """Returns a curve's values, evenly thinned where there are too many; None for NaN."""
    count = len(curve.thresholds)
    kept = np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(np.int64))
    columns = {"threshold": curve.thresholds, "precision": curve.precision, "recall": curve.recall, "f1": curve.f1}
    values = {name: [number_or_none(value) for value in column[kept].tolist()] for name, column in columns.items()}
    return {"objects": curve.objects, **values}
