"""Configurations: JSON round trip, and one exception for every invalid value."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError, ModelError
from train.config import DARKNET_ANCHORS, LossConfig, ModelConfig, TrainConfig
from train.data.augment import AugmentConfig
from train.recipes import RECIPES, recipe

CONFIG = TrainConfig(recipe="test")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    config = recipe(name)
    again = TrainConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)  # tuples came back as tuples


def test_changes_survive_json() -> None:
    config = CONFIG.replace(
        model=ModelConfig(guided=False, anchors=((1.5, 2.5),) * 6),
        loss=LossConfig(ignore_iou=0.5, iou_loss=False, label_smoothing=False),
        augment=AugmentConfig(flip=0.25),
        sizes=(96,),
        seed=7,
    )
    assert TrainConfig.from_json(config.to_json()) == config


RETINANET = ModelConfig(detector="retinanet", backbone="resnet50", guided=False, adaption=False)

# (class, what is wrong with it)
WRONG: list[tuple[type, dict[str, Any]]] = [
    (ModelConfig, {"backbone": "resnet"}),
    (ModelConfig, {"fusion": "mean"}),
    (ModelConfig, {"width": 0}),
    (ModelConfig, {"width": -1}),
    (ModelConfig, {"width": 5}),
    (ModelConfig, {"width": float("nan")}),
    (ModelConfig, {"depth": 0}),
    (ModelConfig, {"depth": 4.1}),
    (ModelConfig, {"compress": 0}),
    (ModelConfig, {"anchors": ()}),
    (ModelConfig, {"anchors": DARKNET_ANCHORS[:8]}),
    (ModelConfig, {"anchors": DARKNET_ANCHORS[:6]}),  # 2 a level, and guided heads have 3 + 1
    (ModelConfig, {"anchors": (*DARKNET_ANCHORS[:8], (0, 5))}),
    (ModelConfig, {"anchors": (*DARKNET_ANCHORS[:8], (1, 5, 6))}),
    (LossConfig, {"ignore_iou": 0}),
    (LossConfig, {"ignore_iou": 1}),
    (TrainConfig, {"size": 100}),
    (TrainConfig, {"size": 0}),
    (TrainConfig, {"sizes": ()}),
    (TrainConfig, {"sizes": (320, 321)}),
    (TrainConfig, {"sizes": (-32,)}),
    (TrainConfig, {"model": RETINANET, "size": 64, "sizes": (96,)}),
    (TrainConfig, {"model": RETINANET, "size": 96, "sizes": (64,)}),
    (ModelConfig, {"detector": "retinanet", "backbone": "resnet50"}),  # guided
    (ModelConfig, {"detector": "retinanet", "guided": False, "adaption": False}),  # on DarkNet
    (TrainConfig, {"resize": "crop"}),
    (TrainConfig, {"epochs": 0}),
    (TrainConfig, {"batch": 0}),
    (TrainConfig, {"evaluate_every": 0}),
    (TrainConfig, {"fixed_epochs": -1}),
    (TrainConfig, {"plain_epochs": -1}),
    (TrainConfig, {"tail_epochs": -1}),
    (TrainConfig, {"warmup_epochs": -1}),
    (TrainConfig, {"learning_rate": 0}),
    (TrainConfig, {"final_learning_rate": -1e-9}),
    (TrainConfig, {"momentum": 1}),
    (TrainConfig, {"momentum": -0.1}),
    (TrainConfig, {"weight_decay": -1e-9}),
    (TrainConfig, {"clip_gradient": -1}),
]


@pytest.mark.parametrize(("kind", "values"), WRONG)
def test_nonsense_is_bad_input(kind: type, values: dict[str, Any]) -> None:
    needed = {"recipe": "test"} if kind is TrainConfig else {}
    with pytest.raises(InputError, match=r"^configuration: "):
        kind(**needed, **values)


def test_a_change_is_validated_too() -> None:
    with pytest.raises(InputError):
        CONFIG.replace(batch=0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        "{}",  # no recipe
        '{"recipe": "x", "color": 1}',
        '{"recipe": "x", "model": {"color": 1}}',
        '{"recipe": "x", "loss": {"color": 1}}',
        '{"recipe": "x", "augment": {"color": 1}}',
        '{"recipe": "x", "model": null}',
        '{"recipe": "x", "model": []}',
        '{"recipe": "x", "epochs": "many"}',
        '{"recipe": "x", "sizes": 320}',
        '{"recipe": "x", "model": {"anchors": 9}}',
        '{"recipe": "x", "model": {"guided": false, "anchors": [[1, "a"], [1, 2], [1, 2]]}}',
        "[" * 100_000,
    ],
)
def test_text_that_is_no_configuration(text: str) -> None:
    with pytest.raises(ModelError):
        TrainConfig.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)
PARTS = {"model": ModelConfig, "loss": LossConfig, "augment": AugmentConfig}
FIELDS = [(None, f.name) for f in dataclasses.fields(TrainConfig)]
FIELDS += [(part, f.name) for part, kind in PARTS.items() for f in dataclasses.fields(kind)]


@settings(max_examples=300)
@given(st.sampled_from(FIELDS), JSON)
def test_no_value_of_any_field_raises_anything_else(field: tuple[str | None, str], value: Any) -> None:
    values = json.loads(CONFIG.to_json())
    part, name = field
    (values[part] if part else values)[name] = value
    with contextlib.suppress(InputError):
        TrainConfig.from_json(json.dumps(values))
