"""Resampled AP: equal to pycocotools on the set as it is and on sets with images left out and repeated; bounds of ΔAP."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset
from runtime.evaluation import matching
from runtime.evaluation.bootstrap import ApDelta, average_precision, compare, mean_ap, student_quantile
from runtime.evaluation.matching import AREAS, Matches, read_matches, run_cocoeval
from tests.support.ground_truth import truth_of

IMAGES = 12
Rng = np.random.Generator
Records = list[dict[str, Any]]


@pytest.fixture(params=["pycocotools", "ultrafast_pycocotools"])
def _judge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both judges, where they are installed."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        monkeypatch.setattr(matching, "find_judge", lambda: (COCO, COCOeval))


def made_up(make_coco: Callable[..., Path], rng: Rng) -> Dataset:
    """Images with objects of all sizes, some of them crowds; the third class has no object."""
    boxes = []
    for image_id in range(1, IMAGES + 1):
        for _ in range(rng.integers(0, 6)):
            side = rng.choice([12, 50, 120]) * rng.uniform(0.8, 1.2, 2)
            x, y = rng.uniform(0, 200 - side)
            boxes.append((image_id, int(rng.choice([1, 3])), (x, y, *side), {"iscrowd": int(rng.random() < 0.15)}))
    images = [(image_id, 200, 200, 0) for image_id in range(1, IMAGES + 1)]
    return open_dataset(make_coco(images, boxes, [(1, "dot"), (3, "ring"), (2, "none")]), "val")


def detected(dataset: Dataset, rng: Rng, noise: float) -> Records:
    """Detections near the objects and elsewhere; scores are coarse, so that many are equal."""
    found = []
    for item in dataset.annotations:
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = np.array(item["bbox"]) * rng.uniform(1 - noise, 1 + noise, 4)
            category = item["category_id"] if rng.random() < 0.9 else 2
            found.append({"image_id": item["image_id"], "category_id": category, "bbox": [x, y, w, h]})
    for _ in range(20):
        box = [*rng.uniform(0, 150, 2), *rng.uniform(5, 90, 2)]
        found.append({"image_id": int(rng.integers(IMAGES)) + 1, "category_id": int(rng.choice([1, 2, 3])), "bbox": box})
    return [{**item, "score": round(float(rng.uniform(0.05, 1)), 1)} for item in found]


def matched(dataset: Dataset, records: Records) -> tuple[Matches, Any]:
    judge = run_cocoeval(dataset, records, [entry.image_id for entry in dataset.images])
    return read_matches(judge, dataset), judge


def repeated(dataset: Dataset, records: Records, counts: Any) -> Any:
    """The slow reference: pycocotools on a set that holds each image as often as `counts` says, under ids of its own."""
    return _repeated(dataset, records, counts)[1]


def _repeated(dataset: Dataset, records: Records, counts: Any) -> tuple[Matches, Any]:
    copies = [(image_id, 100 * image_id + copy) for image_id, count in enumerate(counts, 1) for copy in range(count)]
    of = {entry.image_id: entry for entry in dataset.images}
    larger = Dataset(
        **{
            **{name: getattr(dataset, name) for name in dataset.__dataclass_fields__},
            "images": [type(of[a])(**{**vars(of[a]), "image_id": b}) for a, b in copies],
            "truth": truth_of(
                [{**item, "image_id": b} for item in dataset.annotations for a, b in copies if item["image_id"] == a]
            ),
        }
    )
    found = [{**item, "image_id": b} for item in records for a, b in copies if item["image_id"] == a]
    judge = run_cocoeval(larger, found, [b for _, b in copies])
    return read_matches(judge, larger), judge


def per_class(judge: Any, area: int) -> Any:
    """AP of each class as pycocotools accumulated it; NaN for -1."""
    precision = judge.eval["precision"][:, :, :, area, 2]
    return np.array([np.nan if (precision[:, :, k] < 0).all() else precision[:, :, k].mean() for k in range(3)])


@pytest.mark.usefixtures("_judge")
@pytest.mark.parametrize("seed", range(5))
def test_ap_is_pycocotools_own(seed: int, make_coco: Callable[..., Path]) -> None:
    rng = np.random.default_rng(seed)
    dataset = made_up(make_coco, rng)
    matches, judge = matched(dataset, detected(dataset, rng, 0.2))
    for area, name in enumerate(AREAS):
        found = average_precision(matches, np.ones((1, IMAGES), np.int32), name)
        np.testing.assert_allclose(found[0], per_class(judge, area), rtol=0, atol=1e-12)
        ap = [judge.stats[0], *judge.stats[3:6]][area]
        assert mean_ap(found)[0] == pytest.approx(ap, abs=1e-12) or (ap == -1 and np.isnan(mean_ap(found)[0]))


@pytest.mark.usefixtures("_judge")
@pytest.mark.parametrize("seed", range(5))
def test_weights_repeat_and_leave_out_images(seed: int, make_coco: Callable[..., Path]) -> None:
    rng = np.random.default_rng(seed)
    dataset = made_up(make_coco, rng)
    records = detected(dataset, rng, 0.2)
    for item in records:  # copies of an image may come apart among equal scores, where order is arbitrary
        item["score"] = float(rng.uniform(0.05, 1))
    matches, _ = matched(dataset, records)
    weights = rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=6).astype(np.int32)
    weights[0, 1:] = 0  # one image alone
    for area, name in enumerate(AREAS):
        found = average_precision(matches, weights, name)
        for row, counts in zip(found, weights):
            np.testing.assert_allclose(row, per_class(repeated(dataset, records, counts), area), rtol=0, atol=1e-12)


def test_blocks_change_nothing(make_coco: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    dataset = made_up(make_coco, rng)
    pair = [matched(dataset, detected(dataset, rng, noise))[0] for noise in (0.1, 0.2)]
    whole = compare(*pair, resamples=50)
    monkeypatch.setattr("runtime.evaluation.bootstrap._ELEMENTS", 1)
    np.testing.assert_array_equal(compare(*pair, resamples=50).samples, whole.samples)


def test_copies_of_images_make_nothing_surer(make_coco: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    dataset = made_up(make_coco, rng)
    found = [detected(dataset, rng, noise) for noise in (0.1, 0.2)]
    for item in (*found[0], *found[1]):
        item["score"] = float(rng.uniform(0.05, 1))  # equal scores have no order
    single = compare(*(matched(dataset, records)[0] for records in found), resamples=50)
    doubled = [_repeated(dataset, records, np.full(IMAGES, 2))[0] for records in found]
    grouped = compare(*doubled, groups=np.repeat(np.arange(IMAGES), 2), resamples=50)
    np.testing.assert_allclose(grouped.samples, single.samples, rtol=0, atol=1e-9)
    assert grouped.images == single.images == IMAGES
    assert grouped.images_with_objects("dot") == single.images_with_objects("dot")
    assert compare(*doubled, resamples=200).bounds(0.95).standard_error < 0.85 * single.bounds(0.95).standard_error


def test_a_model_differs_from_itself_by_nothing(make_coco: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    dataset = made_up(make_coco, rng)
    matches, _ = matched(dataset, detected(dataset, rng, 0.2))
    bounds = compare(matches, matches, resamples=20).bounds(0.95)
    assert (bounds.estimate, bounds.standard_error, bounds.lower, bounds.upper) == (0, 0, 0, 0)


def test_bounds_of_known_samples() -> None:
    rng = np.random.default_rng(0)
    samples = np.column_stack([rng.normal(-0.3, 0.1, 100_000), np.full(100_000, np.nan)])
    delta = ApDelta(
        estimate=np.array([-0.3, np.nan]),
        samples=samples,
        reference=np.array([50.0, np.nan]),
        class_names=("none",),
        presence=np.zeros((1, 100), bool),
        objects=(0,),
    )
    bounds = delta.bounds(0.95)
    assert (bounds.estimate, bounds.confidence) == (-0.3, 0.95)
    error = 0.1 * (100 / 99) ** 0.5
    assert bounds.standard_error == pytest.approx(error, rel=0.01)
    assert bounds.lower == pytest.approx(-0.3 - 1.6604 * error, abs=2e-3)  # Student's quantile at 99 degrees of freedom
    assert bounds.upper == pytest.approx(-0.3 + 1.6604 * error, abs=2e-3)
    assert np.isnan(delta.bounds(0.95, "none").estimate)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),  # from a table of Student's distribution
    [
        (0.95, 19, 1.7291),
        (0.975, 19, 2.0930),
        (0.95, 99, 1.6604),
        (0.975, 99, 1.9842),
        (0.99, 30, 2.4573),
        (0.95, 10**6, 1.6449),
    ],
)
def test_students_quantile(probability: float, freedom: int, expected: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(expected, abs=2e-3)


def test_matches_of_other_images_are_refused(make_coco: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    dataset = made_up(make_coco, rng)
    records = detected(dataset, rng, 0.2)
    fewer = read_matches(run_cocoeval(dataset, records, [0, 1, 2]), dataset)
    with pytest.raises(ValueError, match="same images"):
        compare(matched(dataset, records)[0], fewer)
