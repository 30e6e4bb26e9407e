"""Mixup: pixels are the blend, weights the shares, boxes stay where they were."""

from __future__ import annotations

import numpy as np
import pytest

from train.data.augment import Sample
from train.data.mixup import mixup

FILL = (104, 116, 124)


def sample(height: int, width: int, value: int, boxes: int, weight: float = 1.0) -> Sample:
    corners = np.tile(np.array([1, 2, 10, 12], np.float32), (boxes, 1))
    image = np.full((height, width, 3), value, np.uint8)
    return Sample(image, corners, np.full(boxes, value, np.int64), np.full(boxes, weight, np.float32))


@pytest.mark.parametrize(("boxes", "others"), [(0, 0), (0, 2), (3, 0), (2, 3)])
def test_boxes_of_both_are_kept_with_weights_that_sum_to_one(boxes: int, others: int) -> None:
    mixed = mixup(sample(20, 30, 10, boxes), sample(40, 25, 200, others), np.random.default_rng(0), FILL)
    assert mixed.image.shape == (40, 30, 3)
    assert mixed.class_ids.tolist() == [10] * boxes + [200] * others
    assert mixed.boxes.shape == (boxes + others, 4)
    assert mixed.boxes.dtype == np.float32
    assert mixed.weights.dtype == np.float32
    assert len(set(mixed.weights[:boxes].tolist())) <= 1
    if boxes and others:
        assert mixed.weights[0] + mixed.weights[-1] == pytest.approx(1.0)


def test_pixels_are_the_weighted_mean() -> None:
    mixed = mixup(sample(20, 30, 10, 1), sample(20, 30, 200, 1), np.random.default_rng(5), FILL)
    share = float(mixed.weights[0])
    np.testing.assert_allclose(mixed.image, round(share * 10 + (1 - share) * 200), atol=1)


def test_the_fill_shows_where_an_image_does_not_reach() -> None:
    mixed = mixup(sample(20, 30, 255, 1), sample(40, 30, 255, 1), np.random.default_rng(5), fill=(0, 0, 0))
    assert (mixed.image[:20] == 255).all()
    np.testing.assert_allclose(mixed.image[20:], round(255 * float(mixed.weights[1])), atol=1)


def test_weights_multiply() -> None:
    mixed = mixup(sample(20, 30, 1, 1, weight=0.5), sample(20, 30, 2, 1, weight=0.5), np.random.default_rng(1), FILL)
    assert mixed.weights.sum() == pytest.approx(0.5)


def test_shares_follow_the_beta_distribution() -> None:
    rng = np.random.default_rng(2)
    shares = [float(mixup(sample(4, 4, 1, 1), sample(4, 4, 2, 1), rng, FILL).weights[0]) for _ in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.std(shares) == pytest.approx(0.25, abs=0.02)  # Beta(1.5, 1.5) has variance 1/16
