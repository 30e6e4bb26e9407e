"""Measures whether the gate's bounds of ΔAP hold: draws validation sets from many images and counts how often they miss.

ΔAP on all images is taken as the truth. A set is drawn with replacement, as a validation set is drawn from all images there
could be.

Example: `python -m benchmarks.verdict --engine model.onnx --compare model.int8.onnx --data fresh --images 100`
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from calibration.budget import FAILED, PASSED, judge
from runtime import cli
from runtime.backends.open import open_backend
from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.evaluation.bootstrap import RESAMPLES, compare
from runtime.evaluation.coco import evaluate
from runtime.evaluation.matching import IOU_THRESHOLDS, ClassMatches, Matches

_LEVEL = 0.95
_JUST = 1e-6  # points by which a budget is met or missed
_COCO = {"images": 5000, "classes": 80, "boxes": 500_000, "objects": 36_000}


def matches_of(path: Path, dataset: Dataset) -> Matches:
    """Runs a file over a dataset."""
    with open_backend(path) as backend:
        detector = Detector(backend, score_threshold=backend.spec.score_threshold)
        return evaluate(detector, dataset, backend.spec.class_names).matches


def draw(matches: Matches, chosen: Any) -> Matches:
    """Returns the matches of a set that holds these images, each once for every time that it is named."""
    return Matches(
        tuple(range(len(chosen))),
        matches.class_names,
        {"all": tuple(_draw_class(item, chosen) for item in matches.by_area["all"])},
    )


def _draw_class(item: ClassMatches, chosen: Any) -> ClassMatches:
    order = np.argsort(item.image_index, kind="stable")
    starts = np.searchsorted(item.image_index[order], np.arange(len(item.objects) + 1))
    parts = [order[starts[image] : starts[image + 1]] for image in chosen]
    taken = np.concatenate(parts)
    image_index = np.repeat(np.arange(len(chosen)), [len(part) for part in parts]).astype(np.int32)
    best = np.argsort(-item.scores[taken], kind="stable")
    taken = taken[best]
    return ClassMatches(
        image_index[best], item.scores[taken], item.matched[:, taken], item.ignored[:, taken], item.objects[chosen]
    )


def simulate(reference: Matches, other: Matches, *, sets: int, images: int, resamples: int, seed: int) -> dict[str, float]:
    """Judges many drawn validation sets.

    Returns:
        The true ΔAP; the share of sets whose two-sided interval covers it; the shares whose lower bound is above it and whose
        upper bound is below it; the shares that pass a budget just missed, and that fail one just met.
    """
    whole = len(reference.image_ids)
    truth = float(compare(reference, other, resamples=1).estimate[0])
    rng = np.random.default_rng(seed)
    covered, above, below, passed, failed, errors = 0, 0, 0, 0, 0, []
    for number in tqdm(range(sets), desc="sets", disable=None, leave=False):
        chosen = rng.integers(0, whole, images)
        delta = compare(draw(reference, chosen), draw(other, chosen), resamples=resamples, seed=number)
        two_sided, bounds = delta.bounds((1 + _LEVEL) / 2), delta.bounds(_LEVEL)
        covered += two_sided.lower <= truth <= two_sided.upper
        above += bounds.lower > truth
        below += bounds.upper < truth
        passed += judge(bounds, -truth - _JUST) == PASSED
        failed += judge(bounds, -truth + _JUST) == FAILED
        errors.append(bounds.standard_error)
    counts = {
        "two-sided interval covers": covered,
        "lower bound too high": above,
        "upper bound too low": below,
        "passes a budget just missed": passed,
        "fails a budget just met": failed,
    }
    shares = {name: count / sets for name, count in counts.items()}
    return {"true delta_ap": truth, "standard error (mean)": float(np.mean(errors)), **shares}


def made_up(images: int, classes: int, boxes: int, objects: int, seed: int) -> Matches:
    """Makes matches of a whole COCO's size up; about half of the objects are found."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(classes):
        count, present = boxes // classes, objects // classes
        scores = np.sort(rng.random(count))[::-1]
        likely = scores**6 * 0.75 * present / (scores**6).sum()
        hit, quality = rng.random(count) < likely, rng.random(count)
        matched = np.stack([hit & (quality > level / IOU_THRESHOLDS * 0.9) for level in range(IOU_THRESHOLDS)])
        ignored = np.broadcast_to(rng.random(count) < 0.003, matched.shape)
        image_index = rng.integers(0, images, count).astype(np.int32)
        present_in = np.bincount(rng.integers(0, images, present), minlength=images).astype(np.int32)
        found.append(ClassMatches(image_index, scores, matched, ignored, present_in))
    return Matches(tuple(range(images)), tuple(map(str, range(classes))), {"all": tuple(found)})


def seconds(reference: Matches, other: Matches) -> float:
    """Times one comparison with the gate's number of resamples."""
    start = time.perf_counter()
    compare(reference, other)
    return time.perf_counter() - start


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "benchmarks.verdict",
        "Measure whether the gate's bounds of ΔAP hold, on validation sets drawn from many images.",
        "python -m benchmarks.verdict --engine model.onnx --compare model.int8.onnx --data fresh --images 100",
    )
    parser.add_argument("--engine", type=Path, help="the reference; without it only the time at COCO's size is measured")
    parser.add_argument("--compare", type=Path, action="append", default=[], help="file to hold against it; may be repeated")
    parser.add_argument("--data", type=Path, help="dataset folder with many images")
    parser.add_argument("--split", default="val", help="split to draw from (default: val)")
    parser.add_argument("--images", type=cli.positive, default=100, help="images in a set (default: 100)")
    parser.add_argument("--sets", type=cli.positive, default=500, help="number of sets (default: 500)")
    parser.add_argument("--resamples", type=cli.positive, default=RESAMPLES, help=f"of each set (default: {RESAMPLES})")
    parser.add_argument("--seed", type=cli.count, default=0, help="of the sets (default: 0)")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    found: dict[str, dict[str, float]] = {}
    if options.engine:
        dataset = open_dataset(options.data, options.split)
        reference = matches_of(options.engine, dataset)
        for path in options.compare:
            other = matches_of(path, dataset)
            found[path.name] = simulate(
                *(reference, other),
                sets=options.sets,
                images=options.images,
                resamples=options.resamples,
                seed=options.seed,
            )
            chosen = np.arange(min(options.images, len(reference.image_ids)))
            found[path.name]["seconds of a comparison"] = seconds(draw(reference, chosen), draw(other, chosen))
    else:
        found["made up, as large as COCO"] = {"seconds of a comparison": seconds(*(made_up(**_COCO, seed=s) for s in (0, 1)))}
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, values in found.items():
            print(name, *(f"  {key:30} {value:8.3f}" for key, value in values.items()), sep="\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
