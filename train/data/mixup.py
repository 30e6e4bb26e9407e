"""Mixes whole images (training recipe): the blend is made once, on the raw images, before the one geometric map."""

from __future__ import annotations

import cv2
import numpy as np

from runtime.ops.image import Image
from train.data.augment import Sample


def mixup(
    first: Sample,
    second: Sample,
    rng: np.random.Generator,
    fill: tuple[int, int, int],
    alpha: float = 1.5,
) -> Sample:
    """Blends two samples by a share drawn from Beta(alpha, alpha) (training recipe: 1.5).

    Both keep their scale and lie at the top left of a canvas as large as the larger of them in each direction.

    Args:
        first: in original pixels.
        second: in original pixels.
        rng: source of the share.
        alpha: of the Beta distribution.
        fill: (blue, green, red) of the canvas outside the images.

    Returns:
        The boxes of both, first those of `first`; their weights are multiplied by the share of their image.
    """
    share = float(rng.beta(alpha, alpha))
    height = max(first.image.shape[0], second.image.shape[0])
    width = max(first.image.shape[1], second.image.shape[1])
    image = cv2.addWeighted(
        _on_canvas(first.image, height, width, fill), share, _on_canvas(second.image, height, width, fill), 1 - share, 0
    )
    return Sample(
        np.asarray(image, np.uint8),
        np.concatenate([first.boxes, second.boxes]),
        np.concatenate([first.class_ids, second.class_ids]),
        np.concatenate([first.weights * np.float32(share), second.weights * np.float32(1 - share)]),
    )


def _on_canvas(image: Image, height: int, width: int, fill: tuple[int, int, int]) -> Image:
    """Puts an image at the top left of a `[height, width, 3]` canvas; returns the image itself where it fills it."""
    below, right = height - image.shape[0], width - image.shape[1]
    if not below and not right:
        return image
    return np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=fill), np.uint8)
