"""Opens the two splits of a run, and checks that a model can be trained and measured by them."""

from __future__ import annotations

import logging
from pathlib import Path

from runtime.datasets.dataset import Dataset, MadeSplit
from runtime.datasets.open import open_dataset
from runtime.datasets.split import names_of
from runtime.datasets.summary import log_summary, require_objects
from runtime.errors import InputError
from runtime.files import write_json
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)


def open_splits(
    data: Path, names: tuple[str, str], made_split: MadeSplit | None, follow_links: bool
) -> tuple[Dataset, Dataset]:
    """Opens the splits to train on and to measure by, says what is in them, and refuses one without objects.

    Args:
        data: dataset folder.
        names: of the two splits, or their roles.
        made_split: how data without validation images is divided; None for the default.
        follow_links: see `open_dataset`.
    """
    train_data, val_data = (open_dataset(data, name, made_split, follow_links) for name in names)
    for dataset, purpose in ((train_data, "train on"), (val_data, "measure by")):
        log_summary(dataset)
        require_objects(dataset, purpose)
    return train_data, val_data


def save_made_split(folder: Path, train_data: Dataset, val_data: Dataset) -> None:
    """Writes which images are on which side to `split.json`, if the data had no validation images of its own."""
    if val_data.made_split:
        sides = {"train": names_of(train_data), "val": names_of(val_data)}
        write_json(folder / "split.json", {**val_data.made_split._asdict(), **sides})


def check_splits(spec: ModelSpec, train_data: Dataset, val_data: Dataset) -> None:
    """Checks that both splits have the model's classes; warns of images in both, which make AP too high."""
    shared = {image.path for image in train_data.images} & {image.path for image in val_data.images}
    if shared:
        log.warning("%d images are in both %s and %s: AP will be too high", len(shared), train_data.split, val_data.split)
    for dataset in (train_data, val_data):
        if dataset.class_names != spec.class_names:
            raise InputError(
                f"{dataset.root}: split {dataset.split!r} has the classes {', '.join(dataset.class_names[:5])}"
                f" ({len(dataset.class_names)}), but the model has {', '.join(spec.class_names[:5])} ({spec.num_classes})"
            )
