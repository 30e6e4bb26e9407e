"""Verdicts on made-up matches: what passes, what fails, what stays undecided, and Holm's correction by its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calibration.budget import FAILED, PASSED, UNDECIDED
from export.accuracy.limits import Budgets, Limits
from export.accuracy.verdict import MIN_IMAGES, MIN_OBJECTS, assess, describe, holm
from runtime.evaluation.bootstrap import Bounds
from runtime.evaluation.matching import AREAS, ClassMatches, Matches

CLASSES = ("cat", "dog")


def one_class(images: int, objects: int, found: float, seed: int = 0) -> ClassMatches:
    """A class of which `found` is the share that is detected at every IoU threshold, with no wrong detection."""
    rng = np.random.default_rng(seed)
    image_index = np.repeat(np.arange(images), objects).astype(np.int32)
    chosen = rng.permutation(image_index.size)[: round(found * image_index.size)]
    matched = np.ones((10, chosen.size), bool)
    counts = np.full(images, objects, np.int32)
    return ClassMatches(image_index[np.sort(chosen)], np.ones(chosen.size), matched, ~matched, counts)


def matches(images: int, objects: int, found: tuple[float, float]) -> Matches:
    classes = tuple(one_class(images, objects, share, seed) for seed, share in enumerate(found))
    return Matches(tuple(range(images)), CLASSES, dict.fromkeys(AREAS, classes))


def verdict(before: Matches, after: Matches, **budgets: object) -> dict[str, str]:
    found = assess(before, after, "int8", Limits(Budgets(**budgets)))  # type: ignore[arg-type]
    assert all(bool(item.reason) == (item.status != PASSED) for item in found)
    return {item.name: item.status for item in found}


@pytest.mark.parametrize(
    ("after", "budget", "expected"),
    [
        ((0.9, 0.9), 0.0, PASSED),
        ((0.89, 0.89), 5.0, PASSED),
        ((0.89, 0.89), 1.0, UNDECIDED),
        ((0.5, 0.5), 5.0, FAILED),
        ((0.5, 0.5), 20.0, UNDECIDED),  # PyTorch's AP of 90 is less than ten budgets
    ],
)
def test_ap_over_all_classes(after: tuple[float, float], budget: float, expected: str) -> None:
    before = matches(50, 4, (0.9, 0.9))
    assert verdict(before, matches(50, 4, after), by_precision={"int8": budget}) == {"AP": expected}


@pytest.mark.parametrize(
    ("estimate", "remedy"),
    [(-0.2, "about 620 images would decide it"), (-0.49, "too close to tell: what is shown is a loss of 0.99 at most")],
)
def test_the_remedy_is_one_that_can_be_had(estimate: float, remedy: str) -> None:
    bounds = Bounds(estimate, 0.3, estimate - 0.494, estimate + 0.494, 0.95)
    assert describe(bounds, 0.5, 100).endswith(f"the budget is 0.5; {remedy}")


@pytest.mark.parametrize(("images", "objects"), [(MIN_IMAGES - 1, 9), (MIN_IMAGES, MIN_OBJECTS // MIN_IMAGES // 2)])
def test_too_little_data_decides_nothing(images: int, objects: int) -> None:
    before = matches(images, objects, (0.9, 0.9))
    (found,) = assess(before, before, "int8", Limits())
    assert found.status == UNDECIDED and "are needed for a verdict" in found.reason


def test_a_class_without_objects_has_no_verdict() -> None:
    full = matches(50, 4, (0.9, 0.9))
    classes = (full.by_area["all"][0], one_class(50, 0, 0.0))
    before = Matches(full.image_ids, CLASSES, dict.fromkeys(AREAS, classes))
    _, found = assess(before, before, "int8", Limits(Budgets(by_class={"dog": 1})))
    assert (found.status, found.bounds) == (UNDECIDED, None) and "0 objects in 0 images" in found.reason


def test_a_loss_of_one_class_is_seen_by_its_own_budget_and_by_that_of_each() -> None:
    before, after = matches(100, 4, (0.9, 0.9)), matches(100, 4, (0.9, 0.8))
    found = verdict(
        before, after, by_precision={"int8": 8.0}, by_class={"cat": 2.0, "dog": 2.0}, by_size={"small": 8.0}, each_class=2.0
    )
    assert found == {
        "AP": PASSED,
        "AP of cat": PASSED,
        "AP of dog": FAILED,
        "AP of small objects": PASSED,
        "AP of each class": FAILED,
    }


def test_holms_correction_by_its_definition() -> None:
    """Closed testing: a hypothesis falls if every set that holds it falls by Bonferroni's rule."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = (rng.random(4) ** 3).tolist()
        for index, rejected in enumerate(holm(values, 0.05)):
            others = [i for i in range(4) if i != index]
            sets = [(index, *rest) for size in range(4) for rest in itertools.combinations(others, size)]
            assert rejected == all(min(values[i] for i in members) <= 0.05 / len(members) for members in sets)
