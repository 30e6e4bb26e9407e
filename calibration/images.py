"""Chooses the calibration images by seed, from a split that is not scored."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.dataset import Dataset, LabeledImage
from runtime.errors import InputError
from runtime.files import sha256
from runtime.ops.preprocess import preprocess
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)

DEFAULT_IMAGES = 512


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
    available = len(dataset)
    if not available:
        raise InputError(f"{dataset.root}: split {dataset.split!r} has no image to calibrate on; choose another split")
    if count is not None and count > available:
        raise InputError(
            f"{dataset.root}: split {dataset.split!r} has {available} images, {count} were asked for; lower --images"
        )
    wanted = min(DEFAULT_IMAGES, available) if count is None else count
    order = np.random.default_rng(seed).permutation(available).tolist()
    chosen = sorted(itertools.islice((index for index in order if _readable(dataset.images[index])), wanted))
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
