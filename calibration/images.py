"""Which pictures a model is calibrated on: chosen by seed from the training split, so that none of them is scored later."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.dataset import Dataset, LabelledImage
from runtime.errors import InputError
from runtime.files import sha256
from runtime.preprocess import preprocess
from runtime.spec import ModelSpec

DEFAULT_IMAGES = 512


@dataclass(frozen=True)
class CalibrationImage:
    """A chosen picture and the hash of its file."""

    entry: LabelledImage
    sha256: str

    def load(self, spec: ModelSpec) -> NDArray[np.float32]:
        """The model's input float32 `[1, 3, H, W]`, made by the very code that detection uses.

        Raises:
            InputError: the picture cannot be read.
        """
        return preprocess(self.entry.read(), spec)[0][None]


def choose_images(dataset: Dataset, count: int | None, seed: int) -> list[CalibrationImage]:
    """`count` pictures of a split, without repetition, the same for the same seed.

    Args:
        count: None for `DEFAULT_IMAGES`, or all there are.

    Raises:
        InputError: the split has no picture, or fewer than asked for.
    """
    available = len(dataset)
    if not available:
        raise InputError(f"{dataset.root}: split {dataset.split!r} has no picture to calibrate on")
    if count is not None and count > available:
        raise InputError(f"{dataset.root}: split {dataset.split!r} has {available} pictures, {count} were asked for")
    wanted = min(DEFAULT_IMAGES, available) if count is None else count
    order = np.random.default_rng(seed).permutation(available)[:wanted]
    chosen = [dataset.images[index] for index in sorted(order.tolist())]
    return [CalibrationImage(entry, sha256(entry.path)) for entry in chosen]


def digest(images: Sequence[CalibrationImage]) -> str:
    """One hash of the chosen pictures' contents, in order."""
    return hashlib.sha256("".join(image.sha256 for image in images).encode()).hexdigest()
