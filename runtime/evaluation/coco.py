"""Measures COCO accuracy: one evaluation for checkpoints, exported files and engines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from runtime.datasets.dataset import Dataset, LabeledImage
from runtime.detections import Detections
from runtime.errors import InputError, ModelError
from runtime.evaluation.matching import Matches, read_matches, run_cocoeval
from runtime.ops.image import Image
from runtime.results.records import to_coco_results

log = logging.getLogger(__name__)

Predict = Callable[[Sequence[Image]], Sequence[Detections]]

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 COCO metrics in pycocotools' order; s, m, l: areas below 32^2, up to 96^2, and above."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a model on a split.

    Attributes:
        metrics: the 12 COCO metrics by name, in [0, 1]; -1 where the split has no such object.
        per_class: AP by class name, in [0, 1]; -1 for a class without objects in the split.
        images: number of images that were scored.
        skipped: one line for each image that could not be read; no metric counts it.
        results: COCO result records with the dataset's own ids, see `Dataset.to_source`.
        matches: of the results with the objects, see `runtime.evaluation.bootstrap`.
    """

    metrics: dict[str, float]
    per_class: dict[str, float]
    images: int
    skipped: tuple[str, ...]
    results: list[dict[str, Any]]
    matches: Matches = field(compare=False, repr=False)

    @property
    def ap(self) -> float:
        """AP averaged over IoU 0.50:0.95."""
        return self.metrics["AP"]

    @property
    def ap50(self) -> float:
        """AP at IoU 0.5."""
        return self.metrics["AP50"]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the result records, ready for JSON."""
        return {
            "figures": self.metrics,
            "per_class": self.per_class,
            "images": self.images,
            "skipped": list(self.skipped),
        }


def evaluate(
    predict: Predict,
    dataset: Dataset,
    class_names: Sequence[str],
    *,
    batch: int = 1,
    strict: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Runs `predict` over a split and scores it with pycocotools.

    Args:
        dataset: the split.
        predict: maps uint8 BGR images to one `Detections` each, in original pixels, down to a score of 0.01.
        class_names: of the predictions' class ids. Classes are matched to the dataset's by name.
        batch: number of images a call of `predict`.
        progress: show a progress bar on a terminal.
        strict: raise for the first image that cannot be read, instead of leaving it out with a warning.

    Raises:
        ModelError: the model's classes are not the dataset's.
        InputError: `strict` and a bad image, or no image can be read.
    """
    return score_predictions(
        dataset, [predict_share(predict, dataset, class_names, batch=batch, strict=strict, progress=progress)]
    )


@dataclass(frozen=True)
class Predictions:
    """Detections in a part of a split.

    Attributes:
        results: COCO result records, in the order of the images.
        scored: ids of the images that were read.
        skipped: one line for each image that could not be read.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def predict_share(
    predict: Predict,
    dataset: Dataset,
    class_names: Sequence[str],
    *,
    batch: int = 1,
    strict: bool = False,
    progress: bool = True,
    share: tuple[int, int] = (0, 1),
) -> Predictions:
    """Runs `predict` over every n-th batch of a split; see `evaluate` for errors.

    Args:
        predict: see `evaluate`.
        dataset: the split.
        class_names: see `evaluate`.
        batch: number of images a call of `predict`.
        strict: see `evaluate`.
        progress: show a progress bar on a terminal.
        share: (first batch, n). Whole batches are shared out, so that each is the same whoever has it.
    """
    category_ids = match_classes(class_names, dataset)
    found_here = Predictions()
    first, step = share
    batches = [dataset.images[start : start + batch] for start in range(first * batch, len(dataset), step * batch)]
    total = sum(map(len, batches))
    bar = tqdm(total=total, desc="evaluate", unit="image", disable=None if progress else True, leave=False)
    with bar:
        for chosen in batches:
            entries, images = _read(chosen, strict, found_here.skipped)
            for entry, found in zip(entries, predict(images) if images else []):
                found_here.scored.append(entry.image_id)
                found_here.results.extend(to_coco_results(entry.image_id, found, category_ids))
            bar.update(len(chosen))
    return found_here


def score_predictions(dataset: Dataset, shares: Sequence[Predictions]) -> Evaluation:
    """Scores the detections of all shares of a split as one.

    Raises:
        InputError: no image could be read.
    """
    skipped = [line for part in shares for line in part.skipped]
    scored = sorted(image_id for part in shares for image_id in part.scored)
    assert len(set(scored)) == len(scored) == len(dataset) - len(skipped), "an image was scored twice, or never"
    if not scored:
        raise InputError(f"{dataset.root}: none of the {len(dataset)} images of {dataset.split} can be read ({skipped[0]})")
    if skipped:
        log.warning("%d of %d images could not be read and count in no metric", len(skipped), len(dataset))
    order = {image.image_id: number for number, image in enumerate(dataset.images)}
    results = sorted((item for part in shares for item in part.results), key=lambda item: order[item["image_id"]])
    metrics, per_class, matches = score(dataset, results, scored)
    return Evaluation(metrics, per_class, len(scored), tuple(skipped), results, matches)


def match_classes(class_names: Sequence[str], dataset: Dataset) -> list[int]:
    """Finds the dataset's category id of each of the model's classes, by name.

    Raises:
        ModelError: one side has a class that the other lacks.
    """
    by_name = dict(zip(dataset.class_names, dataset.category_ids))
    if set(by_name) != set(class_names) or len(class_names) != len(by_name):
        extra = sorted(set(class_names) - set(by_name))[:5]
        lacking = sorted(set(by_name) - set(class_names))[:5]
        raise ModelError(
            f"the model has {len(class_names)} classes, {dataset.root} has {len(by_name)}"
            f" (only in the model: {', '.join(extra) or 'none'}; only in the data: {', '.join(lacking) or 'none'});"
            " use a model trained on these classes"
        )
    return [by_name[name] for name in class_names]


def score(
    dataset: Dataset, results: Sequence[dict[str, Any]], image_ids: Sequence[int]
) -> tuple[dict[str, float], dict[str, float], Matches]:
    """Computes the 12 metrics and AP per class of COCO result records, and the matches that they come from.

    Args:
        dataset: the ground truth.
        results: COCO result records.
        image_ids: images that count.
    """
    judge = run_cocoeval(dataset, results, image_ids)
    precision = judge.eval["precision"][:, :, :, 0, 2]  # [IoU, recall, class], all areas, 100 detections
    per_class = {
        dataset.class_names[dataset.category_ids.index(category_id)]: _mean(precision[:, :, k])
        for k, category_id in enumerate(judge.params.catIds)
    }
    metrics = {name: float(value) for name, value in zip(METRICS, judge.stats)}
    return metrics, per_class, read_matches(judge, dataset)


def _mean(precision: Any) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else -1.0


def _read(entries: Sequence[LabeledImage], strict: bool, skipped: list[str]) -> tuple[list[LabeledImage], list[Image]]:
    readable, images = [], []
    for entry in entries:
        try:
            images.append(entry.read())
        except InputError as error:
            if strict:
                raise
            log.warning("skipped: %s", error)
            skipped.append(str(error))
        else:
            readable.append(entry)
    return readable, images
