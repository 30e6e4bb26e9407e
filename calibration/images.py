"""Chooses images by seed: some to calibrate on, others to search on; none of them is ever scored by the gate."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.copies import content_keys
from runtime.datasets.dataset import Dataset, LabeledImage
from runtime.errors import InputError
from runtime.files import sha256
from runtime.ops.preprocess import preprocess
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)

DEFAULT_IMAGES = 512
SEARCH_IMAGES = 400
"""Number of images that methods and layers are chosen by, at most."""
MIN_SEARCH = 50
_MOST_RANGED, _LEAST_RANGED, _RANGED_SHARE = 16, 8, 1 / 20


@dataclass(frozen=True)
class CalibrationImage:
    """Chosen image and the SHA-256 of its file."""

    entry: LabeledImage
    sha256: str

    def load(self, spec: ModelSpec, batch: int | None = None) -> NDArray[Any]:
        """Reads and preprocesses the image as detection does.

        Args:
            spec: the model's spec.
            batch: fixed batch size of the model, if any; the image is repeated, which changes no distribution.

        Returns:
            The model's input `[batch or 1, *spec.input_shape]`.

        Raises:
            InputError: the image cannot be read.
        """
        image = preprocess(self.entry.read(), spec)[0]
        return np.repeat(image[None], batch or 1, axis=0)


def choose_images(dataset: Dataset, count: int | None, seed: int) -> list[CalibrationImage]:
    """Chooses images of a split without repetition; the same seed gives the same images.

    An image that cannot be read is logged and replaced by the next.

    Args:
        dataset: the split.
        count: how many; None for `DEFAULT_IMAGES`, or all if there are fewer.
        seed: of the choice.

    Returns:
        The images, in the order of the split.

    Raises:
        InputError: the split has no readable image, or fewer than asked for.
    """
    return _take(dataset, _shuffled(dataset, seed), count, DEFAULT_IMAGES)


def choose_apart(dataset: Dataset, count: int | None, seed: int) -> tuple[list[CalibrationImage], Dataset]:
    """Chooses images to calibrate on and others to search on, from one split.

    Args:
        dataset: the split.
        count: how many to calibrate on; None for `DEFAULT_IMAGES`, or a third of the split if that is less.
        seed: of the choice.

    Returns:
        The calibration images, and up to `SEARCH_IMAGES` further ones, whose files have other contents; both in the order of
        the split.

    Raises:
        InputError: see `choose_images`; or too few images are left to search on.
    """
    order = _shuffled(dataset, seed)
    images = _take(dataset, order, count, min(DEFAULT_IMAGES, max(1, len(dataset) // 3)))
    known = {image.sha256 for image in images}
    others = (index for index in order if sha256(dataset.images[index].path) not in known)
    search = sorted(itertools.islice(others, SEARCH_IMAGES))
    if len(search) < MIN_SEARCH:
        raise InputError(
            f"{dataset.root}: split {dataset.split!r} leaves {len(search)} images to search on beside {len(images)} to"
            f" calibrate on, {MIN_SEARCH} are needed; name a third split by --search-split, or search nothing"
            " (--method minmax --max-ap-drop none)"
        )
    return images, dataset.only([dataset.images[index] for index in search])


def _shuffled(dataset: Dataset, seed: int) -> Iterator[int]:
    """Yields the positions of readable images in a random order."""
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    return (index for index in order if _readable(dataset.images[index]))


def _take(dataset: Dataset, order: Iterator[int], count: int | None, default: int) -> list[CalibrationImage]:
    available = len(dataset)
    if not available:
        raise InputError(f"{dataset.root}: split {dataset.split!r} has no image to calibrate on; choose another split")
    if count is not None and count > available:
        raise InputError(
            f"{dataset.root}: split {dataset.split!r} has {available} images, {count} were asked for; lower --images"
        )
    wanted = min(default, available) if count is None else count
    chosen = sorted(itertools.islice(order, wanted))
    if not chosen or (count is not None and len(chosen) < count):
        raise InputError(
            f"{dataset.root}: split {dataset.split!r} has {len(chosen)} images that can be read, {wanted} are needed"
        )
    return [CalibrationImage(entry, sha256(entry.path)) for entry in (dataset.images[index] for index in chosen)]


def _readable(entry: LabeledImage) -> bool:
    try:
        entry.read()
    except InputError as error:
        log.warning("left out of calibration: %s", error)
        return False
    return True


def find_shared(hashes: Collection[str], sizes: Collection[int] | None, dataset: Dataset) -> list[LabeledImage]:
    """Returns the images of a split whose files have the contents of given ones.

    Args:
        hashes: SHA-256 of the given files.
        sizes: their sizes in bytes, so that a file of another size need not be read; None if they are not known.
        dataset: the split.
    """
    if not hashes:
        return []
    files = (entry for entry in dataset.images if entry.path.is_file())
    alike = (entry for entry in files if sizes is None or entry.path.stat().st_size in sizes)
    return [entry for entry in alike if sha256(entry.path) in hashes]


def check_apart(used: Sequence[LabeledImage], other: Dataset, how: str, option: str) -> None:
    """Raises InputError, which names `option` as the remedy, if images that were used (`how`) are in another split too."""
    hashes, sizes = {sha256(image.path) for image in used}, {image.path.stat().st_size for image in used}
    shared = find_shared(hashes, sizes, other)
    if shared:
        raise InputError(
            f"{other.root}: {len(shared)} images of {other.split!r} are {how} too, by their content (such as"
            f" {shared[0].path.name}), which would flatter the result; choose another {option}"
        )


def group_copies(dataset: Dataset, image_ids: Sequence[int]) -> NDArray[np.intp]:
    """Numbers the different contents among the images of a split.

    Args:
        dataset: the split.
        image_ids: ids of the images to number, all of the split.

    Returns:
        `[I]`, equal numbers for files of equal bytes, from 0 on without a gap.
    """
    entries = {entry.image_id: entry for entry in dataset.images}
    numbers: dict[str, int] = {}
    keys = content_keys([entries[image_id] for image_id in image_ids])
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.intp)


def named(images: Sequence[CalibrationImage]) -> list[dict[str, str]]:
    """Lists name and SHA-256 of the chosen images, for a manifest."""
    return [{"name": image.entry.path.name, "sha256": image.sha256} for image in images]


def digest(images: Sequence[CalibrationImage]) -> str:
    """Returns one SHA-256 of the chosen images' contents, in order."""
    return hashlib.sha256("".join(image.sha256 for image in images).encode()).hexdigest()


def dataset_sha256(dataset: Dataset) -> str:
    """Returns one SHA-256 of a split: its annotations, and the name and bytes of each image, in order."""
    total = hashlib.sha256(json.dumps([dataset.class_names, dataset.annotations], sort_keys=True).encode())
    for entry in dataset.images:
        image = sha256(entry.path) if entry.path.is_file() else "missing"
        total.update(f"{entry.image_id} {entry.path.name} {image}\n".encode())
    return total.hexdigest()


def range_image_count(available: int) -> int:
    """Returns the number of images by whose detections ranges are searched.

    Args:
        available: number of images to calibrate and to search on; of few a share is taken, so that the search stays below a
            fifth of what scoring every layer on all of them would run.
    """
    return min(_MOST_RANGED, max(_LEAST_RANGED, int(_RANGED_SHARE * available)))
