"""Judges a file's loss of AP by the evidence: over all classes, of single classes, and by object size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from calibration.budget import FAILED, PASSED, UNDECIDED, images_to_decide, judge
from export.accuracy.limits import Limits
from export.accuracy.operating import OperatingChange
from runtime.evaluation.bootstrap import ApDelta, Bounds, Indices, compare
from runtime.evaluation.matching import Matches

MIN_IMAGES = 20
"""With fewer images that hold objects, resampling them says too little."""
MIN_OBJECTS = 50
"""With fewer objects, one more or less found moves AP by more than any budget."""
_LEAST_AP = 10
"""A reference AP of fewer budgets than this cannot show a loss."""


@dataclass(frozen=True)
class Criterion:
    """One limit, and how a file stands against it.

    Attributes:
        name: what is limited, such as `AP` or `AP of person`.
        status: `passed`, `failed` or `undecided`.
        budget: points of AP that may be lost.
        bounds: of ΔAP in points; None where it could not be measured.
        reason: one line, for anything but a pass.
    """

    name: str
    status: str
    budget: float
    bounds: Bounds | None
    reason: str = ""


def assess(
    reference: Matches, other: Matches, precision: str, limits: Limits, groups: Indices | None = None
) -> tuple[Criterion, ...]:
    """Judges a file by every limit that applies to it.

    Args:
        reference: matches of the weights in PyTorch.
        other: matches of the file, on the same images.
        precision: of the file.
        limits: what is asked of it.
        groups: copies of an image among the images, see `runtime.evaluation.bootstrap.draw_weights`.

    Returns:
        One criterion a limit; the first is that of AP over all classes.
    """
    budgets, confidence = limits.budgets, limits.confidence
    delta = compare(reference, other, groups=groups)
    found = [_criterion("AP", delta, None, budgets.by_precision[precision], confidence)]
    found += [_criterion(f"AP of {name}", delta, name, budget, confidence) for name, budget in budgets.by_class.items()]
    for size, budget in budgets.by_size.items():
        of_size = compare(reference, other, area=size, groups=groups)
        found.append(_criterion(f"AP of {size} objects", of_size, None, budget, confidence))
    if budgets.each_class is not None:
        found.append(_each_class(delta, budgets.each_class, confidence))
    return tuple(found)


def assess_operating(change: OperatingChange, images: int, limits: Limits) -> tuple[Criterion, ...]:
    """Judges the change at the operating point by the limits that were set.

    Args:
        change: see `compare_operating`.
        images: number of images.
        limits: what is asked of the file.
    """
    found = []
    for name, budget in limits.operating.items():
        bounds, what = change.changes[name], _NAMES[name]
        status = UNDECIDED if np.isnan(bounds.estimate) or images < MIN_IMAGES else judge(bounds, budget)
        reason = ""
        if np.isnan(bounds.estimate):
            reason = f"{what}: PyTorch detects nothing at the threshold {change.threshold:g}"
        elif status != PASSED:
            span = f"{-bounds.estimate:.2f} (between {-bounds.upper:.2f} and {-bounds.lower:.2f})"
            reason = f"{what} at the threshold {change.threshold:g}: {span}, the limit is {budget:g}"
        found.append(Criterion(what, status, budget, None if np.isnan(bounds.estimate) else bounds, reason))
    return tuple(found)


_NAMES = {
    "vanished": "% of detections vanished",
    "appeared": "% of detections appeared",
    "reclassified": "% of detections with another class",
    "f1": "points of F1 lost",
}


def _criterion(name: str, delta: ApDelta, class_name: str | None, budget: float, confidence: float) -> Criterion:
    reason = _too_little(delta, class_name, budget)
    bounds = delta.bounds(confidence, class_name)
    if np.isnan(bounds.estimate):
        return Criterion(name, UNDECIDED, budget, None, f"{name}: {reason}")
    status = UNDECIDED if reason else judge(bounds, budget)
    if status == FAILED:
        reason = f"lost {-bounds.estimate:.3f} points of {name} (at least {-bounds.upper:.3f}), the budget is {budget:g}"
    elif status == UNDECIDED:
        reason = f"{name}: {reason or describe(bounds, budget, delta.images)}"
    return Criterion(name, status, budget, bounds, reason)


def describe(bounds: Bounds, budget: float, images: int) -> str:
    """Says between which values ΔAP lies, and how many images would decide, or else which loss is not exceeded."""
    count = images_to_decide(bounds, budget, images)
    if count:
        remedy = f"about {count:,} images would decide it"
    else:
        remedy = f"too close to tell: what is shown is a loss of {math.ceil(-bounds.lower * 100) / 100:g} at most"
    span = f"ΔAP {bounds.estimate:+.2f} lies between {bounds.lower:+.2f} and {bounds.upper:+.2f}"
    return f"{span}, the budget is {budget:g}; {remedy}"


def _too_little(delta: ApDelta, class_name: str | None, budget: float) -> str:
    """Returns why the images cannot decide, whatever the resampling says; empty if they can."""
    columns = range(len(delta.class_names)) if class_name is None else [delta.class_names.index(class_name)]
    objects = sum(delta.objects[k] for k in columns)
    images = delta.images_with_objects(class_name)
    reference = float(delta.reference[0 if class_name is None else 1 + columns[0]])
    if objects < MIN_OBJECTS or images < MIN_IMAGES:
        return f"{objects} objects in {images} images; {MIN_OBJECTS} in {MIN_IMAGES} are needed for a verdict"
    if reference < _LEAST_AP * budget:
        return f"PyTorch reaches {reference:.2f}, less than ten times the budget of {budget:g}: a loss could not be told"
    return ""


def _each_class(delta: ApDelta, budget: float, confidence: float) -> Criterion:
    """Judges all classes at once.

    A file fails if a class exceeds the budget after Holm's correction, so that of 80 classes none fails by chance. It
    passes if each class by itself keeps within it, which needs no correction: one that does not would have to pass too.
    """
    present = [name for name, count in zip(delta.class_names, delta.objects) if count]
    single = {name: _criterion(f"AP of {name}", delta, name, budget, confidence) for name in present}
    testable = [name for name in present if not _too_little(delta, name, budget)]
    bounds = min((item.bounds for item in single.values() if item.bounds), key=lambda item: item.estimate, default=None)
    failed = holm([_p_value(single[name].bounds, budget) for name in testable], 1 - confidence)
    names = [name for name, fails in zip(testable, failed) if fails]
    if names:
        return Criterion("AP of each class", FAILED, budget, bounds, f"{_few(names)}: lost more than {budget:g} points of AP")
    open_ones = [name for name in present if single[name].status != PASSED]
    if open_ones:
        reason = f"AP of each class: too few images to show that {_few(open_ones)} lost no more than {budget:g} points"
        return Criterion("AP of each class", UNDECIDED, budget, bounds, reason)
    return Criterion("AP of each class", PASSED, budget, bounds)


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Tells which hypotheses Holm's step-down test rejects, so that a true one is rejected with a chance of `level` at most."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def _p_value(bounds: Bounds | None, budget: float) -> float:
    """Returns the chance of a ΔAP as low as this one if the true loss were the budget."""
    assert bounds is not None
    if bounds.standard_error == 0:
        return 0.0 if bounds.estimate < -budget else 1.0
    return NormalDist().cdf((bounds.estimate + budget) / bounds.standard_error)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
