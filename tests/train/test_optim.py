"""Learning rate over time and which weights decay."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from train.config import ModelConfig, TrainConfig
from train.model import build_model
from train.optim import build_optimizer, learning_rate, warmup_span
from train.recipes import RECIPES, recipe

PAPER = TrainConfig(recipe="test")


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0.0, 0.0),
        (1.0, 1e-3 / 256),
        (2.0, 1e-3 / 16),
        (3.0, 1e-3 * 81 / 256),
        (4.0, 1e-3),  # the top
        (137.0, (1e-3 + 1e-5) / 2),  # half way from 4 to 270
        (70.5, 1e-5 + 99e-5 * (1 + math.cos(math.pi / 4)) / 2),
        (270.0, 1e-5),  # the tail begins 30 epochs before the end
        (285.3, 1e-5),
        (300.0, 1e-5),
    ],
)
def test_the_papers_schedule(epoch: float, rate: float) -> None:
    assert learning_rate(epoch, PAPER) == pytest.approx(rate, rel=1e-6, abs=1e-15)


@given(st.integers(1, 50), st.integers(0, 5), st.integers(0, 10), st.floats(0, 1), st.floats(0, 1), st.floats(0.0, 1e-3))
def test_it_rises_then_falls_then_rests(epochs: int, wanted: int, tail: int, first: float, second: float, final: float) -> None:
    config = PAPER.replace(epochs=epochs, warmup_epochs=wanted, tail_epochs=tail, final_learning_rate=final)
    warmup = warmup_span(config)  # at most a third
    early, late = sorted((first * epochs, second * epochs))
    rates = learning_rate(early, config), learning_rate(late, config)
    assert all(0 <= rate <= config.learning_rate * (1 + 1e-9) for rate in rates)
    if late < warmup:
        assert rates[0] <= rates[1]
    elif early >= warmup:
        assert rates[0] >= rates[1] - 1e-12
        assert rates[1] >= final - 1e-12
    assume(warmup < epochs - tail)
    assert learning_rate(warmup, config) == pytest.approx(config.learning_rate)
    assert learning_rate(max(late, epochs - tail), config) == pytest.approx(final)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_ends_at_its_final_rate(name: str) -> None:
    config = recipe(name)
    assert learning_rate(config.epochs - config.tail_epochs, config) == pytest.approx(config.final_learning_rate)
    assert learning_rate(config.warmup_epochs, config) == pytest.approx(config.learning_rate)


@pytest.mark.parametrize("backbone", ["darknet53", "mobilenetv2"])
def test_only_convolution_weights_decay(backbone: str) -> None:
    config = PAPER.replace(model=ModelConfig(backbone=backbone, adaption=False, width=0.125, depth=0.25))
    model = build_model(config.model, 2)
    optimizer = build_optimizer(model, config)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decays) == len(list(model.parameters()))
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if id(parameter) in norms or name.endswith("bias") else 5e-4), name
    assert all(group["momentum"] == 0.9 and group["lr"] == 1e-3 for group in optimizer.param_groups)


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    model[0].requires_grad_(False)
    held = {id(p) for group in build_optimizer(model, PAPER).param_groups for p in group["params"]}
    assert held == {id(p) for p in model[1].parameters()}
