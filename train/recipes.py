"""Defines the named variants; each is a function that returns a `TrainConfig`, most of them a change to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from runtime.errors import InputError
from train.config import (
    DARKNET_ANCHORS,
    MOBILENET_ANCHORS,
    PLAIN_ANCHORS,
    RETINANET_ANCHORS,
    LossConfig,
    ModelConfig,
    TrainConfig,
)
from train.data.augment import AugmentConfig

_RETINANET_LOSS = LossConfig(iou_loss=False, label_smoothing=False)  # YOLOv3's extras, which RetinaNet does not have


def yolov3() -> TrainConfig:
    """Plain YOLOv3 as Darknet has it: 3 anchors a level, no guiding, no spatial pyramid pooling (paper, Table 1, first row)."""
    model = ModelConfig(fusion="none", guided=False, adaption=False, spp=False, anchors=PLAIN_ANCHORS)
    return TrainConfig(
        recipe="yolov3",
        model=model,
        loss=LossConfig(iou_loss=False, label_smoothing=False),
        mixup=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        pad_value=127.5,
    )


def yolov3_spp() -> TrainConfig:
    """Plain YOLOv3 with spatial pyramid pooling, Darknet's `yolov3-spp`."""
    plain = yolov3()
    return plain.replace(recipe="yolov3-spp", model=dataclasses.replace(plain.model, spp=True))


def yolov3_bof() -> TrainConfig:
    """YOLOv3 with the bag of freebies: mixup and label smoothing (Table 1)."""
    loss = LossConfig(iou_loss=False)
    return yolov3().replace(recipe="yolov3-bof", loss=loss, mixup=True)


def yolov3_ga() -> TrainConfig:
    """The bag of freebies and guided anchors with feature adaption, in the published network (Table 1)."""
    return yolov3_baseline().replace(recipe="yolov3-ga", loss=LossConfig(iou_loss=False))


def yolov3_baseline() -> TrainConfig:
    """The paper's baseline: all of that and the IoU loss, without fusion (Table 1)."""
    return _fused(yolov3_asff(), "none", "yolov3-baseline")


def yolov3_iou() -> TrainConfig:
    """Another name of yolov3-baseline."""
    return yolov3_baseline().replace(recipe="yolov3-iou")


def yolov3_baseline_rfb() -> TrainConfig:
    """The baseline with receptive field blocks and DropBlock."""
    return _with_rfb(yolov3_baseline(), "yolov3-baseline-rfb")


def yolov3_ignore_centre() -> TrainConfig:
    """The baseline, the neighboring levels' cells at a label's center left out of the objectness loss (Table 2)."""
    return _ignoring(0.0, "yolov3-ignore-centre")


def yolov3_ignore_02() -> TrainConfig:
    """The same with all cells in the inner 0.2 of a label (Table 2)."""
    return _ignoring(0.2, "yolov3-ignore-0.2")


def yolov3_ignore_05() -> TrainConfig:
    """The same with all cells in the inner 0.5 of a label (Table 2)."""
    return _ignoring(0.5, "yolov3-ignore-0.5")


def yolov3_sum() -> TrainConfig:
    """Fusion by element-wise sum (Table 3)."""
    return _fused(yolov3_asff(), "sum", "yolov3-sum")


def yolov3_concat() -> TrainConfig:
    """Fusion by concatenation (Table 3)."""
    return _fused(yolov3_asff(), "concat", "yolov3-concat")


def yolov3_asff() -> TrainConfig:
    """The paper's detector: DarkNet-53, guided anchors with feature adaption, ASFF (Table 3)."""
    return TrainConfig(recipe="yolov3-asff")


def yolov3_asff_star() -> TrainConfig:
    """ASFF*: with receptive field blocks, DropBlock and half as many epochs again (Table 4)."""
    return _with_rfb(yolov3_asff(), "yolov3-asff-star")


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


def yolov3_asff_medium_turned() -> TrainConfig:
    """Half of DarkNet's width and depth with quarter turns, for images that have no up and down, such as a microscope's."""
    small = yolov3_asff_small()
    return small.replace(
        recipe="yolov3-asff-medium-turned",
        model=dataclasses.replace(small.model, width=0.5, anchors=_anchors_for(416)),
        augment=dataclasses.replace(small.augment, turn=0.75),
        size=416,
        sizes=(352, 384, 416, 448, 480),
        epochs=200,
        batch=16,
        optimizer="adamw",
        learning_rate=1.5e-3,
        weight_decay=1e-2,
        clip_gradient=10.0,
        evaluate_every=20,
    )


def yolov3_asff_star_small() -> TrainConfig:
    """ASFF* at a quarter of DarkNet's width; no DropBlock, which only long trainings need."""
    star = dataclasses.replace(yolov3_asff_small().model, rfb=True, compress=8)
    return _small("yolov3-asff-star-small", star)


def yolov3_mobilenetv2_asff_small() -> TrainConfig:
    """Half of MobileNetV2's width, for small sets and training from scratch on a CPU."""
    model = ModelConfig(backbone="mobilenetv2", adaption=False, width=0.5, anchors=_anchors_for(256))
    return _small("yolov3-mobilenetv2-asff-small", model)


def retinanet_r50() -> TrainConfig:
    """RetinaNet with ResNet-50, without fusion (Table 5; arXiv 1708.02002, section 4); square inputs, batch norm trained."""
    model = ModelConfig(
        detector="retinanet",
        backbone="resnet50",
        spp=False,
        fusion="none",
        guided=False,
        adaption=False,
        anchors=RETINANET_ANCHORS,
    )
    return TrainConfig(
        recipe="retinanet-r50",
        model=model,
        loss=_RETINANET_LOSS,
        augment=dataclasses.replace(AugmentConfig.none(), flip=0.5),
        size=800,
        sizes=(800,),
        epochs=12,
        fixed_epochs=0,
        plain_epochs=0,
        tail_epochs=0,
        warmup_epochs=1,
        mixup=False,
        batch=16,
        learning_rate=1e-2,
        final_learning_rate=1e-4,
        weight_decay=1e-4,
        evaluate_every=1,
    )


def retinanet_r50_asff() -> TrainConfig:
    """RetinaNet with ResNet-50 and ASFF on P3-P5 (Table 5)."""
    return _fused(retinanet_r50(), "asff", "retinanet-r50-asff")


def retinanet_r101() -> TrainConfig:
    """RetinaNet with ResNet-101, without fusion (Table 5)."""
    plain = retinanet_r50()
    return plain.replace(recipe="retinanet-r101", model=dataclasses.replace(plain.model, backbone="resnet101"))


def retinanet_r101_asff() -> TrainConfig:
    """RetinaNet with ResNet-101 and ASFF on P3-P5 (Table 5)."""
    return _fused(retinanet_r101(), "asff", "retinanet-r101-asff")


def retinanet_r50_asff_small() -> TrainConfig:
    """A quarter of ResNet-50's width and half its depth, for small sets and training from scratch on a CPU."""
    anchors = tuple((w * 0.75, h * 0.75) for w, h in RETINANET_ANCHORS)  # 3 strides: at 256 pixels objects are smaller
    model = dataclasses.replace(retinanet_r50_asff().model, width=0.25, depth=0.5, anchors=anchors)
    return _small("retinanet-r50-asff-small", model).replace(
        loss=_RETINANET_LOSS, optimizer="adamw", learning_rate=1e-3, weight_decay=1e-2, clip_gradient=10.0
    )


def demo() -> TrainConfig:
    """The model of `make demo`, trained in minutes: a quarter of DarkNet's width and depth, every part of the full detector."""
    model = ModelConfig(width=0.25, depth=0.25, anchors=_anchors_for(160))
    return _small("demo", model).replace(
        size=160,
        sizes=(160,),
        epochs=20,
        warmup_steps=0,  # a first run on a handful of images has few steps to spare
        batch=8,
        optimizer="adamw",
        learning_rate=4e-3,
        weight_decay=1e-2,
        evaluate_every=10,
    )


def _fused(config: TrainConfig, fusion: str, name: str) -> TrainConfig:
    return config.replace(recipe=name, model=dataclasses.replace(config.model, fusion=fusion))


def _ignoring(area: float, name: str) -> TrainConfig:
    return yolov3_baseline().replace(recipe=name, loss=LossConfig(ignore_area=area))


def _with_rfb(config: TrainConfig, name: str) -> TrainConfig:
    """Adds what the star stands for (training recipe of ASFF*)."""
    model = dataclasses.replace(config.model, rfb=True, compress=8)
    blocks = ((5, (1, 3, 5)), (80, (3, 5, 7)), (150, (7, 7, 7)))
    return config.replace(recipe=name, model=model, epochs=round(config.epochs * 1.5), dropblock=blocks)


def _small(name: str, model: ModelConfig) -> TrainConfig:
    """From scratch on a few hundred images: small batches, gentle augmentation, no mixup and no label smoothing."""
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
        warmup_steps=50,
        mixup=False,
        batch=4,
        norm_momentum=0.02,
        clip_gradient=100.0,
        evaluate_every=10,
    )


def _anchors_for(size: int) -> tuple[tuple[float, float], ...]:
    """Scales the published anchors, which suit 416 pixels, to another input side."""
    return tuple((round(w * size / 416, 1), round(h * size / 416, 1)) for w, h in DARKNET_ANCHORS)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "yolov3": yolov3,
    "yolov3-spp": yolov3_spp,
    "yolov3-bof": yolov3_bof,
    "yolov3-ga": yolov3_ga,
    "yolov3-iou": yolov3_iou,
    "yolov3-baseline": yolov3_baseline,
    "yolov3-baseline-rfb": yolov3_baseline_rfb,
    "yolov3-ignore-centre": yolov3_ignore_centre,
    "yolov3-ignore-0.2": yolov3_ignore_02,
    "yolov3-ignore-0.5": yolov3_ignore_05,
    "yolov3-concat": yolov3_concat,
    "yolov3-sum": yolov3_sum,
    "yolov3-asff": yolov3_asff,
    "yolov3-asff-star": yolov3_asff_star,
    "yolov3-mobilenetv2": yolov3_mobilenetv2,
    "yolov3-mobilenetv2-asff": yolov3_mobilenetv2_asff,
    "yolov3-asff-small": yolov3_asff_small,
    "yolov3-asff-medium-turned": yolov3_asff_medium_turned,
    "yolov3-asff-star-small": yolov3_asff_star_small,
    "yolov3-mobilenetv2-asff-small": yolov3_mobilenetv2_asff_small,
    "retinanet-r50": retinanet_r50,
    "retinanet-r50-asff": retinanet_r50_asff,
    "retinanet-r101": retinanet_r101,
    "retinanet-r101-asff": retinanet_r101_asff,
    "retinanet-r50-asff-small": retinanet_r50_asff_small,
    "demo": demo,
}


PAPER_AP: dict[str, str] = {
    "yolov3": "33.0 (val, 608)",
    "yolov3-bof": "37.2 (val, 608)",
    "yolov3-ga": "38.2 (val, 608)",
    "yolov3-iou": "38.8 (val, 608)",
    "yolov3-baseline": "38.8 (val, 608)",
    "yolov3-ignore-centre": "38.8 (val, 608)",
    "yolov3-ignore-0.2": "39.1 (val, 608)",
    "yolov3-ignore-0.5": "37.5 (val, 608)",
    "yolov3-concat": "39.5 (val, 608)",
    "yolov3-sum": "39.3 (val, 608)",
    "yolov3-asff": "40.6 (val, 608)",
    "yolov3-asff-star": "42.4 (test-dev, 608)",
    "yolov3-mobilenetv2": "29.0 (test-dev, 416)",
    "yolov3-mobilenetv2-asff": "30.6 (test-dev, 416)",
    "retinanet-r50": "35.9 (val, 800)",
    "retinanet-r50-asff": "37.4 (val, 800)",
    "retinanet-r101": "39.1 (val, 800)",
    "retinanet-r101-asff": "40.1 (val, 800)",
}
"""AP that the paper or its authors' page reports for the full training on COCO: (split, input side)."""


def recipe(name: str) -> TrainConfig:
    """Returns the recipe of that name.

    Raises:
        InputError: there is none; the message lists them.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
