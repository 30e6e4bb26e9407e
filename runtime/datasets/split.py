"""Divides a dataset without validation images into `train` and `val`, by its content and a seed alone."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runtime.datasets.copies import content_keys
from runtime.datasets.dataset import Dataset, LabeledImage, MadeSplit
from runtime.errors import InputError

_AUGMENTED = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{16,}\.[^.]+")  # Roboflow's name for one of several copies of an image


def divide(dataset: Dataset, made: MadeSplit) -> dict[str, Dataset]:
    """Divides a split into `train` and `val`, each with its share of every class.

    Files of one content, and Roboflow's augmented copies of one image, stay together. The order of files does not matter.

    Args:
        dataset: the split.
        made: share, seed, and the digest that the result must have, if any.

    Raises:
        InputError: fewer than two images that differ, or the digest is another one.
    """
    groups = _groups(dataset, made.seed)
    if len(groups) < 2:
        raise InputError(
            f"{dataset.root}: has no validation images, and {len(dataset)} images cannot be divided; add images or a val split"
        )
    chosen = {image.image_id for group in _choose(groups, made.share) for image in group}
    parts = {
        "train": [image for image in dataset.images if image.image_id not in chosen],
        "val": [image for image in dataset.images if image.image_id in chosen],
    }
    digest = _digest(dataset.root, parts)
    if made.sha256 and made.sha256 != digest:
        raise InputError(
            f"{dataset.root}: has no validation images of its own, and is not the data that the model was trained on (files,"
            f" labels or names changed), so the same {made.share:g} of it cannot be held back; use that data, or score on"
            " everything with --split all"
        )
    found = made._replace(sha256=digest)
    return {name: replace(dataset.only(images), split=name, made_split=found) for name, images in parts.items()}


def names_of(dataset: Dataset) -> list[str]:
    """Lists the images of a split by their paths below the dataset folder, sorted."""
    return sorted(_name(dataset.root, image) for image in dataset.images)


def _name(root: Path, image: LabeledImage) -> str:
    return image.path.relative_to(root).as_posix()


def _digest(root: Path, parts: dict[str, list[LabeledImage]]) -> str:
    lines = [f"{part} {name}" for part, images in parts.items() for name in sorted(_name(root, image) for image in images)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _groups(dataset: Dataset, seed: int) -> list[list[LabeledImage]]:
    """Groups images that must stay together, in a random order that follows from names and seed."""
    first_of: dict[str, str] = {}
    groups: dict[str, list[LabeledImage]] = defaultdict(list)
    images = sorted(dataset.images, key=lambda image: _name(dataset.root, image))
    for image, content in zip(images, content_keys(images)):
        name = _name(dataset.root, image)
        augmented = _AUGMENTED.fullmatch(name)
        groups[first_of.setdefault(content, augmented[1] if augmented else name)].append(image)
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest())
    return [groups[key] for key in order]


def _choose(groups: Sequence[list[LabeledImage]], share: float) -> list[list[LabeledImage]]:
    """Chooses the groups that go to `val`: of each class about `share`, the rarest class first, then of the empty ones.

    Every class that is in two groups is on both sides.
    """
    classes = [frozenset(c for image in group for c in image.class_ids[~image.crowd].tolist()) for group in groups]
    members: dict[int, list[int]] = defaultdict(list)
    for index, found in enumerate(classes):
        for class_id in found or (-1,):
            members[class_id].append(index)
    side: dict[int, bool] = {}
    for class_id in sorted(members, key=lambda class_id: (class_id == -1, len(members[class_id]), class_id)):
        total = len(members[class_id])
        wanted = min(max(round(total * share), 1), total - 1) if class_id >= 0 else round(total * share)
        wanted -= sum(side.get(index, False) for index in members[class_id])
        for index in members[class_id]:
            if index not in side:
                side[index] = wanted > 0
                wanted -= 1
    if not any(side.values()):
        side[0] = True
    elif all(side.values()):
        side[0] = False
    return [group for index, group in enumerate(groups) if side[index]]
