"""Changes of size, length and anchors, and what follows them."""

from __future__ import annotations

import argparse

import pytest

from runtime.errors import InputError
from train.__main__ import configure, parse
from train.config import TrainConfig
from train.model.build import level_anchors
from train.optim import learning_rate, warmup_span
from train.overrides import anchor, parts, with_epochs, with_size
from train.recipes import RECIPES, recipe
from train.spec import model_spec


@pytest.mark.parametrize("name", ["yolov3-asff", "yolov3-asff-star", "yolov3-asff-small", "demo", "retinanet-r50"])
@pytest.mark.parametrize("steps", [1, 7, 52, 1800])
def test_every_length_keeps_all_phases(name: str, steps: int) -> None:
    whole = recipe(name)
    for epochs in range(1, 401):
        config = with_epochs(whole, epochs)
        warmup = warmup_span(config, steps)
        assert warmup <= epochs / 3
        assert warmup * steps >= min(config.warmup_steps, epochs * steps / 3) - 1e-9
        for span in ("tail_epochs", "plain_epochs", "fixed_epochs"):
            least = 1 if getattr(whole, span) and (epochs > 2 or span != "tail_epochs") else 0
            assert least <= getattr(config, span) <= epochs
        end = epochs - config.tail_epochs
        assert warmup < end
        count = min(epochs * steps, 40)
        rates = [learning_rate(epochs * k / count, config, steps) for k in range(1, count + 1)]
        assert min(rates) > 0 and max(rates) <= config.learning_rate * (1 + 1e-9)
        assert learning_rate(warmup, config, steps) == pytest.approx(config.learning_rate)
        assert learning_rate(end, config, steps) == pytest.approx(config.final_learning_rate) == rates[-1]
        starts = [start for start, _ in config.dropblock]
        assert starts == sorted(set(starts)) and (not starts or starts[0] >= 1)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_its_own_size_and_length_is_unchanged(name: str) -> None:
    config = recipe(name)
    assert with_epochs(with_size(config, config.size), config.epochs) == config


def test_anchors_scale_with_the_size_into_the_spec() -> None:
    small = configure(parse(["--recipe", "yolov3-asff", "--size", "416"]))
    assert small.model.anchors[0] == (6.8, 8.9) and small.anchor_source == "recipe"
    assert model_spec(small, ("a",)).anchors == level_anchors(small.model)[1]
    assert model_spec(small, ("a",)).anchors[2][0] == (6.8, 8.9)
    retina = recipe("retinanet-r50")
    assert with_size(retina, 512).model == retina.model


NINE = [f"{10 + n},{20 + n}" for n in range(9)]


def test_anchors_are_given_or_fitted() -> None:
    given = configure(parse(["--anchors", *NINE[::-1]]))
    assert (given.anchor_source, given.model.anchors[0], given.model.anchors[8]) == ("given", (10.0, 20.0), (18.0, 28.0))
    assert TrainConfig.from_json(given.to_json()) == given
    assert configure(parse(["--anchors", "auto"])).anchor_source == "auto"
    for values in (NINE[:8], [*NINE[:8], "auto"], ["auto", "auto"]):
        with pytest.raises(InputError, match="--anchors: expected auto, or 9 pairs W,H, got"):
            configure(parse(["--anchors", *values]))
    with pytest.raises(InputError, match="strides"):
        configure(parse(["--recipe", "retinanet-r50", "--anchors", "auto"]))


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", "0,1", "-1,4", "nan,1", "inf,1", ""])
def test_what_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        anchor(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("backbone", (("backbone", 0),)),
        ("neck:3,backbone", (("backbone", 0), ("neck", 3))),
        ("", None),
        ("body", None),
        ("neck,neck:2", None),
        ("neck:0", None),
        ("neck:", None),
        ("neck:1.5", None),
    ],
)
def test_parts_are_parsed(text: str, found: tuple[tuple[str, int], ...] | None) -> None:
    if found is not None:
        assert configure(parse(["--freeze", text])).freeze == found
    else:
        with pytest.raises(SystemExit):
            parse(["--freeze", text])


def test_part_rates_need_a_number_each() -> None:
    assert configure(parse(["--part-rates", "neck=0.5,backbone=0.1"])).part_rates == (("backbone", 0.1), ("neck", 0.5))
    with pytest.raises(argparse.ArgumentTypeError, match="backbone=N"):
        parts("=", float)("backbone")
    with pytest.raises(InputError, match="leaves nothing to train"):
        configure(parse(["--freeze", "backbone,neck,fusion,heads"]))
