"""Named variants, each a function from nothing to a `TrainConfig`, most of them a change to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from runtime.errors import InputError
from train.config import DARKNET_ANCHORS, MOBILENET_ANCHORS, LossConfig, ModelConfig, TrainConfig
from train.data.augment import AugmentConfig


def yolov3_asff() -> TrainConfig:
    """The paper's detector: DarkNet-53, guided anchors with feature adaption, ASFF (section 4, Table 1)."""
    return TrainConfig(recipe="yolov3-asff")


def yolov3_baseline() -> TrainConfig:
    """The paper's baseline: the same without fusion."""
    return _fused(yolov3_asff(), "none", "yolov3-baseline")


def yolov3_sum() -> TrainConfig:
    """Fusion by element-wise sum (paper, Table 3)."""
    return _fused(yolov3_asff(), "sum", "yolov3-sum")


def yolov3_concat() -> TrainConfig:
    """Fusion by concatenation (paper, Table 3)."""
    return _fused(yolov3_asff(), "concat", "yolov3-concat")


def yolov3_mobilenetv2_asff() -> TrainConfig:
    """MobileNetV2 with ASFF; no feature adaption."""
    model = ModelConfig(backbone="mobilenetv2", adaption=False, anchors=MOBILENET_ANCHORS)
    return yolov3_asff().replace(recipe="yolov3-mobilenetv2-asff", model=model)


def yolov3_mobilenetv2() -> TrainConfig:
    """MobileNetV2 without fusion."""
    return _fused(yolov3_mobilenetv2_asff(), "none", "yolov3-mobilenetv2")


def yolov3_asff_small() -> TrainConfig:
    """A quarter of DarkNet's width, for small sets and training from scratch on a CPU."""
    model = ModelConfig(width=0.25, depth=0.5, anchors=_anchors_for(256))
    return _small("yolov3-asff-small", model)


def yolov3_mobilenetv2_asff_small() -> TrainConfig:
    """Half of MobileNetV2's width, for small sets and training from scratch on a CPU."""
    model = ModelConfig(backbone="mobilenetv2", adaption=False, width=0.5, anchors=_anchors_for(256))
    return _small("yolov3-mobilenetv2-asff-small", model)


def demo() -> TrainConfig:
    """What `make demo` trains in minutes: a quarter of DarkNet's width and depth, with every part of the full detector."""
    model = ModelConfig(width=0.25, depth=0.25, anchors=_anchors_for(160))
    return _small("demo", model).replace(
        size=160,
        sizes=(160,),
        epochs=20,
        batch=8,
        optimizer="adamw",
        learning_rate=4e-3,
        weight_decay=1e-2,
        evaluate_every=10,
    )


def _fused(config: TrainConfig, fusion: str, name: str) -> TrainConfig:
    return config.replace(recipe=name, model=dataclasses.replace(config.model, fusion=fusion))


def _small(name: str, model: ModelConfig) -> TrainConfig:
    """From scratch on a few hundred pictures: small batches, gentle augmentation, no mixup and no label smoothing."""
    return TrainConfig(
        recipe=name,
        model=model,
        loss=LossConfig(label_smoothing=False),
        augment=AugmentConfig(photometric=0.3, zoom_out=0.0, crop=0.0, min_side=3.0),
        size=256,
        sizes=(224, 256, 288),
        epochs=60,
        fixed_epochs=10,
        plain_epochs=0,
        tail_epochs=2,
        warmup_epochs=1,
        mixup=False,
        batch=4,
        clip_gradient=100.0,
        evaluate_every=10,
    )


def _anchors_for(size: int) -> tuple[tuple[float, float], ...]:
    """The published anchors, which suit 416 pixels, for another input side."""
    return tuple((round(w * size / 416, 1), round(h * size / 416, 1)) for w, h in DARKNET_ANCHORS)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "yolov3-asff": yolov3_asff,
    "yolov3-baseline": yolov3_baseline,
    "yolov3-sum": yolov3_sum,
    "yolov3-concat": yolov3_concat,
    "yolov3-mobilenetv2-asff": yolov3_mobilenetv2_asff,
    "yolov3-mobilenetv2": yolov3_mobilenetv2,
    "yolov3-asff-small": yolov3_asff_small,
    "yolov3-mobilenetv2-asff-small": yolov3_mobilenetv2_asff_small,
    "demo": demo,
}


def recipe(name: str) -> TrainConfig:
    """The recipe of that name.

    Raises:
        InputError: there is none; the message lists them.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
