"""The distance that training with rounding lessens, against a plain loop."""

from __future__ import annotations

import pytest
import torch

from train.qat.finetune import _distance


def slow_distance(found: torch.Tensor, wanted: torch.Tensor, anchors: int, classes: int) -> float:
    """One value after the other, in float64."""
    found, wanted = found.double(), wanted.double()
    images, _, height, width = wanted.shape
    places = [(n, y, x) for n in range(images) for y in range(height) for x in range(width)]
    total = 0.0
    for anchor in range(anchors):
        first = anchor * (5 + classes)
        scores = []
        for n, y, x in places:
            chances = torch.sigmoid(wanted[n, first + 4 : first + 5 + classes, y, x]).tolist()
            scores.append(chances[0] * max(chances[1:]) + 0.01)
        weights = [score / (sum(scores) / len(scores)) for score in scores]
        for channel in range(first, first + 5 + classes):
            values = [wanted[n, channel, y, x].item() for n, y, x in places]
            mean = sum(w * v for w, v in zip(weights, values)) / len(places)
            variance = sum(w * (v - mean) ** 2 for w, v in zip(weights, values)) / len(places)
            squares = [(found[n, channel, y, x].item() - v) ** 2 for (n, y, x), v in zip(places, values)]
            total += sum(w * square for w, square in zip(weights, squares)) / (variance + 1e-6)
    return total / wanted.numel()


@pytest.mark.parametrize(("anchors", "classes"), [(1, 1), (3, 2)])
def test_the_distance_equals_a_loop(anchors: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(anchors)
    shape = (2, anchors * (5 + classes), 3, 4)
    wanted = 3 * torch.randn(shape, generator=generator)
    found = wanted + 0.1 * torch.randn(shape, generator=generator)
    assert _distance(found, wanted, classes).item() == pytest.approx(slow_distance(found, wanted, anchors, classes), rel=1e-5)
    assert _distance(wanted, wanted, classes).item() == 0
