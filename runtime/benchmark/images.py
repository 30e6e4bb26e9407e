"""Finds or makes the image files that a benchmark runs on."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from runtime.media.image import write_image
from runtime.media.sources import SkippedSources, find_sources, read_each, read_source
from runtime.ops.image import Image

_MADE_UP, _WIDTH, _HEIGHT = 8, 640, 480
_MOST_IMAGES = 64  # of --source; as much as the largest batch anyone asks for, and quickly read


@contextlib.contextmanager
def open_images(source: Optional[str]) -> Iterator[tuple[list[Path], str]]:
    """Yields the files of images that can be read, and a text that says what they are."""
    if source is None:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{index}.jpg" for index in range(_MADE_UP)]
            for index, file in enumerate(files):
                write_image(file, made_up_image(np.random.default_rng(index)))
            yield files, f"{_MADE_UP} made-up JPEG images of {_WIDTH}x{_HEIGHT}"
        return
    sources = find_sources(source)[:_MOST_IMAGES]
    with SkippedSources(len(sources), strict=False) as skipped:
        readable = [item.path for item, _ in read_each(sources, read_source, skipped, label="read")]
    yield readable, f"{len(readable)} images of {source}" if len(readable) > 1 else str(readable[0])


def made_up_image(rng: np.random.Generator) -> Image:
    """A random uint8 BGR image `[480, 640, 3]` with coarse and fine structure, about as hard for JPEG as a photograph."""
    image = np.zeros((_HEIGHT, _WIDTH, 3), np.float32)
    for cells, strength in ((3, 60), (10, 40), (40, 25), (240, 20)):
        coarse = rng.normal(0, strength, (cells, cells * _WIDTH // _HEIGHT, 3)).astype(np.float32)
        image += cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + 120, 0, 255).astype(np.uint8)
