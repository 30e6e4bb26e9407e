"""Measures how far two runs of a model are apart, on numpy arrays of any backend, raw maps or candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ModelError
from runtime.ops import boxes as box_ops
from runtime.ops.decode import decode
from runtime.spec import ModelSpec

LIMITS = {"fp32": 1e-4, "fp16": 1e-2}
"""Largest accepted difference from PyTorch in float32, by precision of the file.

fp32: largest difference, relative to the output's largest magnitude. fp16: root mean square of the difference, relative to that
of the output; a single value says little there, and the accuracy gate judges what rounding costs (trained models: 4e-4).
"""
ROUNDING = 4
"""A difference of an FP32 file counts as rounding up to this many times PyTorch's own distance from float64."""
MOST_ROUNDING = 1e-2
"""Largest difference that counts as rounding: beyond it, the weights magnify rounding too much to judge a file."""
OPTIONS_LIMIT = 1e-5
"""Largest accepted difference of a file with options from the plain file, relative to each output's largest magnitude.

Both compute the same network with the same library, and both decode in float32 (seen: 0 to 1e-6).
"""


@dataclass(frozen=True)
class OutputDifference:
    """Largest difference found in one output.

    Attributes:
        output: name of the output.
        absolute: max |a - b|.
        relative: max |a - b|, divided by max |a| of the reference.
        rms: root mean square of a - b, divided by that of a.
        pytorch_rounding: largest relative distance of PyTorch in float32 from PyTorch in float64; None if not measured.
    """

    output: str
    absolute: float
    relative: float
    rms: float
    pytorch_rounding: float | None = None

    def measure(self, precision: str) -> float:
        """Returns the number that `LIMITS` limits for a precision."""
        return self.relative if precision == "fp32" else self.rms

    def agrees(self, precision: str) -> bool:
        """Tells whether the difference is within `LIMITS`; False for NaN."""
        return self.measure(precision) <= LIMITS[precision]

    def is_rounding(self) -> bool:
        """Tells whether PyTorch's own rounding explains the difference; False if that was not measured."""
        return self.pytorch_rounding is not None and self.relative <= min(ROUNDING * self.pytorch_rounding, MOST_ROUNDING)


def compare(
    names: Sequence[str], reference: Sequence[NDArray[np.floating]], other: Sequence[NDArray[np.floating]]
) -> list[OutputDifference]:
    """Measures the largest difference of each output; infinite where shapes differ or a value is not finite."""
    return [_difference(name, a, b) for name, a, b in zip(names, reference, other)]


def compare_outputs(
    spec: ModelSpec, reference: Sequence[NDArray[np.floating]], other_spec: ModelSpec, other: Sequence[NDArray[np.floating]]
) -> list[OutputDifference]:
    """Measures the differences between the outputs of two backends for the same images.

    Maps are compared map by map. Candidates are compared with the boxes that the reference's maps hold at their anchor indices:
    `boxes` (clipped to the input), `scores`, `classes` (the logit of the chosen class with that of the best one), and
    `selection` (the candidates' scores with the highest scores of the maps).

    Args:
        spec: of the reference, which gives out raw maps.
        reference: the maps of a batch.
        other_spec: of the other backend; its `top_k` tells candidates from maps.
        other: the outputs for the same batch.
    """
    if not other_spec.top_k:
        return compare(spec.map_names, reference, other)
    found = []
    for index, rows in enumerate(other[0]):
        found += _compare_candidates(spec, [level[index] for level in reference], other_spec, rows)
    return found


def _compare_candidates(
    spec: ModelSpec, maps: Sequence[NDArray[np.floating]], other_spec: ModelSpec, rows: NDArray[np.floating]
) -> list[OutputDifference]:
    try:
        every, chosen = decode(maps, spec, 0), decode([rows], other_spec, 0)  # both ordered by anchor index
    except ModelError:  # NaN, or anchor indices that do not exist
        return [_infinite("selection")]
    anchor_indices = np.unique(rows[:, 6].astype(np.int64))
    if len(anchor_indices) != len(rows):
        return [_infinite("selection")]
    height, width = spec.input_size
    logits = _class_logits(maps, spec)[anchor_indices]
    return compare(
        ("boxes", "scores", "classes", "selection"),
        (
            box_ops.clip(every.boxes[anchor_indices], width, height),
            every.scores[anchor_indices],
            logits.max(axis=1),
            np.sort(every.scores)[: -len(rows) - 1 : -1],
        ),
        (
            box_ops.clip(chosen.boxes, width, height),
            chosen.scores,
            np.take_along_axis(logits, chosen.class_ids[:, None], axis=1)[:, 0],
            np.sort(chosen.scores)[::-1],
        ),
    )


def _class_logits(maps: Sequence[NDArray[np.floating]], spec: ModelSpec) -> NDArray[np.floating]:
    """Gathers the class logits of all boxes of an image, `[boxes, C]`, ordered by anchor index."""
    levels = []
    for raw, anchors in zip(maps, spec.anchors):
        cells = raw.reshape(len(anchors), spec.class_channel + spec.num_classes, -1)[:, spec.class_channel :]
        levels.append(cells.transpose(0, 2, 1).reshape(-1, spec.num_classes))
    return np.concatenate(levels)


def _difference(name: str, reference: NDArray[np.floating], other: NDArray[np.floating]) -> OutputDifference:
    if reference.shape != other.shape or not (np.isfinite(reference).all() and np.isfinite(other).all()):
        return _infinite(name)
    error = reference.astype(np.float64) - other
    absolute, scale = float(np.abs(error).max()), float(np.abs(reference).max())
    power, noise = float(np.square(reference, dtype=np.float64).mean()), float(np.square(error).mean())
    return OutputDifference(name, absolute, absolute / (scale or 1), (noise / (power or 1)) ** 0.5)


def _infinite(name: str) -> OutputDifference:
    return OutputDifference(name, float("inf"), float("inf"), float("inf"))


def worst(differences: Sequence[OutputDifference]) -> OutputDifference:
    """Returns the one with the largest relative difference."""
    return max(differences, key=lambda difference: difference.relative)
