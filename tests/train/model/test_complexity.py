"""Parameters and operations, against the numbers that the authors of ASFF publish and against counting by hand."""

from __future__ import annotations

import pytest

from train.config import ModelConfig
from train.model.complexity import complexity
from train.recipes import recipe


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [
        ("yolov3-baseline", 75.6, 76.0),
        ("yolov3-asff", 79.4, 81.0),
        ("yolov3-asff-star", 86.0, 86.1),
        ("yolov3-mobilenetv2", 24.8, 19.2),
        ("yolov3-mobilenetv2-asff", 27.1, 20.4),
    ],
)
def test_the_published_numbers_at_416(name: str, millions: float, giga: float) -> None:
    cost = complexity(recipe(name).model, 80, (416,))
    assert cost.parameters / 1e6 == pytest.approx(millions, abs=0.051)
    assert cost.operations[416] / 1e9 == pytest.approx(giga, abs=0.051)


def test_darknets_own_figure_for_plain_yolov3() -> None:
    assert complexity(recipe("yolov3").model, 80, (416,)).operations[416] / 1e9 == pytest.approx(65.86, abs=0.01)


def test_it_counts_what_a_convolution_does_with_every_output() -> None:
    """The head of the finest level is one 1x1 convolution: adding classes to it adds what can be counted on paper."""
    config = ModelConfig(width=0.125, depth=0.25, fusion="none", guided=False, adaption=False)
    few, many = (complexity(config, classes, (64, 128)) for classes in (1, 2))
    channels = {32: 128, 16: 64, 8: 32}
    added = sum(2 * 3 * (64 // stride) ** 2 * inputs for stride, inputs in channels.items())
    assert many.operations[64] - few.operations[64] == added
    assert many.parameters - few.parameters == sum(3 * (inputs + 1) for inputs in channels.values())
    assert few.operations[128] == 4 * few.operations[64]
