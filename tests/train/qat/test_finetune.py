"""The distance that training with rounding lessens, against a plain loop."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from runtime.spec import ModelSpec
from tests.support.small_models import tiny
from train.qat.finetune import FinetuneOptions, _batches, _distance
from train.spec import model_spec


def slow_distance(found: list[torch.Tensor], wanted: list[torch.Tensor], spec: ModelSpec) -> float:
    """One candidate after the other, in float64 and pixels."""
    changed = total = 0.0
    for level, maps in enumerate(zip(found, wanted)):
        one, other = (item.double().reshape(len(item), -1, 5 + spec.num_classes, *item.shape[2:]) for item in maps)
        for n, anchor, row, column in itertools.product(*(range(one.shape[axis]) for axis in (0, 1, 3, 4))):
            values = [item[n, anchor, :, row, column] for item in (one, other)]
            (a, mine), (b, theirs) = (decoded(item, spec, level, anchor, row, column) for item in values)
            changed += sum(abs(x - y) for x, y in zip(mine, theirs)) + max(*mine, *theirs) * (1 - iou(a, b))
            total += max(theirs)
    return changed / (total + 1)


def decoded(
    logits: torch.Tensor, spec: ModelSpec, level: int, anchor: int, row: int, column: int
) -> tuple[list[float], list[float]]:
    x, y, objectness = (torch.sigmoid(logits[index]).item() for index in (0, 1, 4))
    sides = [spec.anchors[level][anchor][axis] * torch.exp(logits[2 + axis]).item() for axis in (0, 1)]
    center = (x + column) * spec.strides[level], (y + row) * spec.strides[level]
    box = [center[0] - sides[0] / 2, center[1] - sides[1] / 2, center[0] + sides[0] / 2, center[1] + sides[1] / 2]
    return box, [objectness * torch.sigmoid(logit).item() for logit in logits[5:]]


def iou(first: list[float], second: list[float]) -> float:
    across, down = (max(0.0, min(first[i + 2], second[i + 2]) - max(first[i], second[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return across * down / (sum(areas) - across * down)


@pytest.mark.parametrize("classes", [("a",), ("a", "b")])
@pytest.mark.parametrize("shift", [0.1, 2.0])
def test_the_distance_equals_a_loop(classes: tuple[str, ...], shift: float) -> None:
    spec = model_spec(tiny(), classes)
    generator = torch.Generator().manual_seed(len(classes))
    wanted = [torch.randn((2, *spec.map_shape(level)), generator=generator) for level in range(3)]
    found = [(item + shift * torch.randn(item.shape, generator=generator)).requires_grad_() for item in wanted]
    distance = _distance(found, wanted, spec)
    assert distance.item() == pytest.approx(slow_distance(found, wanted, spec), rel=1e-4)
    assert _distance(wanted, wanted, spec).item() == pytest.approx(0, abs=1e-5)
    distance.backward()
    assert all(item.grad is not None and item.grad.isfinite().all() and item.grad.abs().sum() > 0 for item in found)


def test_each_epoch_has_every_image_once_half_of_them_mirrored() -> None:
    values = [np.random.default_rng(n).random((1, 3, 2, 4), np.float32) for n in range(40)]
    images = [partial(np.copy, value) for value in values]
    epochs = []
    for epoch in range(2):
        batches = list(_batches(images, FinetuneOptions(batch=16), epoch))
        assert [len(batch) for batch in batches] == [16, 16, 8]
        kinds = []
        for image in np.concatenate(batches):
            plain = [n for n, value in enumerate(values) if np.array_equal(image, value[0])]
            mirrored = [n for n, value in enumerate(values) if np.array_equal(image, value[0, :, :, ::-1])]
            kinds.append((*(plain or mirrored), bool(mirrored)))
        assert sorted(number for number, _ in kinds) == list(range(40))
        assert 10 <= sum(is_mirrored for _, is_mirrored in kinds) <= 30
        epochs.append(kinds)
    assert epochs[0] != epochs[1]
