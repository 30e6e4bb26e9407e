"""How far two runs of the same model are apart, on numpy arrays from any backend, raw maps or candidates."""

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
"""How far a file of a precision may be from PyTorch in float32. fp32: the largest difference, relative to the output's largest
magnitude. fp16: the root mean square of the difference, relative to that of the output; a single value says little there, and
what the rounding costs is for the accuracy gate to say (trained models: 4e-4)."""


ROUNDING = 4
"""A difference of a float32 file counts as rounding up to this many times PyTorch's own distance from float64."""
MOST_ROUNDING = 1e-2
"""Largest difference that counts as rounding: beyond it the weights magnify rounding too much to judge a file."""
OPTIONS_LIMIT = 1e-5
"""How far a file with options may be from the plain file of the same precision, relative to each output's largest magnitude:
both compute the same network by the same library, and the decoding is done in float32 on either side (seen: 0 to 1e-6)."""


@dataclass(frozen=True)
class Difference:
    """The largest difference found in one output.

    Attributes:
        output: its name. absolute: max |a - b|. relative: that, divided by max |a| of the reference.
        rms: root mean square of a - b, divided by that of a.
        pytorch_rounding: largest relative distance of PyTorch in float32 from PyTorch in float64; None if not measured.
    """

    output: str
    absolute: float
    relative: float
    rms: float
    pytorch_rounding: float | None = None

    def measure(self, precision: str) -> float:
        """The figure that counts for a precision."""
        return self.relative if precision == "fp32" else self.rms

    def is_rounding(self) -> bool:
        """Whether PyTorch's own rounding, where it was measured, explains the difference."""
        return self.pytorch_rounding is not None and self.relative <= min(ROUNDING * self.pytorch_rounding, MOST_ROUNDING)

    def agrees(self, precision: str) -> bool:
        """Whether it is small enough for a file of that precision; false for values that are not numbers."""
        return self.measure(precision) <= LIMITS[precision]


def compare(
    names: Sequence[str], reference: Sequence[NDArray[np.floating]], other: Sequence[NDArray[np.floating]]
) -> list[Difference]:
    """The largest difference of each output; infinite where shapes differ or a value is not finite."""
    return [_difference(name, a, b) for name, a, b in zip(names, reference, other)]


def compare_outputs(
    spec: ModelSpec, reference: Sequence[NDArray[np.floating]], other_spec: ModelSpec, other: Sequence[NDArray[np.floating]]
) -> list[Difference]:
    """What two backends' `infer` gave for the same images, the reference's being raw maps.

    Candidates are held against the boxes at their places in the maps: `boxes` (clipped to the input), `scores`, `classes` (the
    logit of the chosen class against that of the best), and `selection` (the scores against the highest that there are).
    """
    if not other_spec.top_k:
        return compare(spec.map_names, reference, other)
    found = []
    for index, rows in enumerate(other[0]):
        found += _compare_candidates(spec, [level[index] for level in reference], other_spec, rows)
    return found


def _compare_candidates(
    spec: ModelSpec, maps: Sequence[NDArray[np.floating]], other_spec: ModelSpec, rows: NDArray[np.floating]
) -> list[Difference]:
    try:
        every, chosen = decode(maps, spec, 0), decode([rows], other_spec, 0)  # both in the order of places
    except ModelError:  # values that are not numbers, or places that there are not
        return [_beyond_measure("selection")]
    places = np.unique(rows[:, 6].astype(np.int64))
    if len(places) != len(rows):
        return [_beyond_measure("selection")]
    height, width = spec.input_size
    logits = _class_logits(maps, spec)[places]
    return compare(
        ("boxes", "scores", "classes", "selection"),
        (
            box_ops.clip(every.boxes[places], width, height),
            every.scores[places],
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
    """`[all boxes, C]`, in the order of places."""
    levels = []
    for raw, anchors in zip(maps, spec.anchors):
        cells = raw.reshape(len(anchors), spec.class_channel + spec.num_classes, -1)[:, spec.class_channel :]
        levels.append(cells.transpose(0, 2, 1).reshape(-1, spec.num_classes))
    return np.concatenate(levels)


def _difference(name: str, reference: NDArray[np.floating], other: NDArray[np.floating]) -> Difference:
    if reference.shape != other.shape or not (np.isfinite(reference).all() and np.isfinite(other).all()):
        return _beyond_measure(name)
    error = reference.astype(np.float64) - other
    absolute, scale = float(np.abs(error).max()), float(np.abs(reference).max())
    power, noise = float(np.square(reference, dtype=np.float64).mean()), float(np.square(error).mean())
    return Difference(name, absolute, absolute / (scale or 1), (noise / (power or 1)) ** 0.5)


def _beyond_measure(name: str) -> Difference:
    return Difference(name, float("inf"), float("inf"), float("inf"))


def worst(differences: Sequence[Difference]) -> Difference:
    """The one with the largest relative difference."""
    return max(differences, key=lambda difference: difference.relative)
