"""Finds images of equal content, within a split and between splits, by the bytes of their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from runtime.datasets.dataset import LabeledImage
from runtime.files import sha256


def content_keys(images: Sequence[LabeledImage]) -> list[str]:
    """Returns a text for each image, equal for files of equal bytes; a file of a size of its own is not read.

    A file that is missing equals none.
    """
    sizes = [image.path.stat().st_size if image.path.is_file() else None for image in images]
    counts = Counter(sizes)
    return [
        f"missing {image.path}" if size is None else sha256(image.path) if counts[size] > 1 else f"{size} bytes"
        for image, size in zip(images, sizes)
    ]


def find_common(images: Sequence[LabeledImage], others: Sequence[LabeledImage]) -> list[LabeledImage]:
    """Returns those of `others` whose files have the bytes of one of `images`."""
    keys = content_keys([*images, *others])
    known = set(keys[: len(images)])
    return [image for image, key in zip(others, keys[len(images) :]) if key in known]
