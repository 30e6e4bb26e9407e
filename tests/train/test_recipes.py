"""Every recipe is a valid detector, and what sets it apart is what its name says."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

from runtime.errors import InputError
from train.data.augment import AugmentConfig
from train.model import build_model
from train.model.build import level_anchors
from train.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_predicts(name: str) -> None:
    config = recipe(name)
    assert config.recipe == name
    small = config.model.width < 1
    with contextlib.nullcontext() if small else torch.device("meta"):  # the full ones for their shapes alone
        model = build_model(config.model, 3, config.loss).eval()
        with torch.no_grad():
            maps = model.maps(torch.zeros(1, 3, 64, 32))
    if config.model.detector == "retinanet":
        assert [tuple(m.shape) for m in maps] == [(1, 9 * 7, -(-64 // s), -(-32 // s)) for s in (128, 64, 32, 16, 8)]
    else:
        anchors = 4 if config.model.guided else 3
        assert [tuple(m.shape) for m in maps] == [(1, anchors * 8, 64 // s, 32 // s) for s in (32, 16, 8)]
        assert model.loss_config == config.loss
    assert not small or all(torch.isfinite(m).all() for m in maps)


@pytest.mark.parametrize(
    ("name", "backbone", "fusion", "guided", "adaption", "spp", "rfb"),
    [
        ("yolov3", "darknet53", "none", False, False, False, False),
        ("yolov3-spp", "darknet53", "none", False, False, True, False),
        ("yolov3-bof", "darknet53", "none", False, False, False, False),
        ("yolov3-ga", "darknet53", "none", True, True, True, False),
        ("yolov3-iou", "darknet53", "none", True, True, True, False),
        ("yolov3-baseline", "darknet53", "none", True, True, True, False),
        ("yolov3-baseline-rfb", "darknet53", "none", True, True, True, True),
        ("yolov3-ignore-0.2", "darknet53", "none", True, True, True, False),
        ("yolov3-sum", "darknet53", "sum", True, True, True, False),
        ("yolov3-concat", "darknet53", "concat", True, True, True, False),
        ("yolov3-asff", "darknet53", "asff", True, True, True, False),
        ("yolov3-asff-star", "darknet53", "asff", True, True, True, True),
        ("yolov3-mobilenetv2", "mobilenetv2", "none", True, False, True, False),
        ("yolov3-mobilenetv2-asff", "mobilenetv2", "asff", True, False, True, False),
        ("yolov3-asff-small", "darknet53", "asff", True, True, True, False),
        ("yolov3-asff-star-small", "darknet53", "asff", True, True, True, True),
        ("yolov3-mobilenetv2-asff-small", "mobilenetv2", "asff", True, False, True, False),
        ("demo", "darknet53", "asff", True, True, True, False),
        ("retinanet-r50", "resnet50", "none", False, False, False, False),
        ("retinanet-r50-asff", "resnet50", "asff", False, False, False, False),
        ("retinanet-r101", "resnet101", "none", False, False, False, False),
        ("retinanet-r101-asff", "resnet101", "asff", False, False, False, False),
        ("retinanet-r50-asff-small", "resnet50", "asff", False, False, False, False),
    ],
)
def test_what_a_name_promises(
    name: str, backbone: str, fusion: str, guided: bool, adaption: bool, spp: bool, rfb: bool
) -> None:
    model = recipe(name).model
    assert (model.backbone, model.fusion, model.guided, model.adaption) == (backbone, fusion, guided, adaption)
    assert (model.spp, model.rfb, model.compress) == (spp, rfb, 8 if rfb else 16)


def test_the_rows_of_table_1_add_one_thing_after_another() -> None:
    plain, freebies, guided, baseline = (recipe(f"yolov3{name}") for name in ("", "-bof", "-ga", "-baseline"))
    assert not plain.mixup and not plain.loss.label_smoothing and not plain.loss.iou_loss
    assert freebies.replace(recipe="yolov3", mixup=False, loss=plain.loss) == plain
    assert freebies.mixup and freebies.loss.label_smoothing and not freebies.loss.iou_loss
    assert guided.loss == freebies.loss and guided.mixup
    assert guided.replace(recipe="yolov3-baseline", loss=baseline.loss) == baseline
    assert baseline.loss.iou_loss and baseline.loss.label_smoothing
    assert recipe("yolov3-iou").replace(recipe="yolov3-baseline") == baseline


def test_the_rows_of_table_2_differ_in_the_ignored_area_alone() -> None:
    for name, area in (("centre", 0.0), ("0.2", 0.2), ("0.5", 0.5)):
        config = recipe(f"yolov3-ignore-{name}")
        assert config.loss.ignore_area == area
        assert config.replace(recipe="yolov3-baseline", loss=recipe("yolov3-baseline").loss) == recipe("yolov3-baseline")


def test_what_the_star_adds() -> None:
    star, plain = recipe("yolov3-asff-star"), recipe("yolov3-asff")
    assert star.epochs == 450
    assert star.dropblock == ((5, (1, 3, 5)), (80, (3, 5, 7)), (150, (7, 7, 7)))
    assert star.replace(recipe=plain.recipe, model=plain.model, epochs=300, dropblock=()) == plain


def test_the_rows_of_table_5_differ_in_backbone_and_fusion_alone() -> None:
    plain = recipe("retinanet-r50")
    for name, changes in (("r50-asff", {"fusion": "asff"}), ("r101", {"backbone": "resnet101"})):
        config = recipe(f"retinanet-{name}")
        assert config == plain.replace(recipe=f"retinanet-{name}", model=dataclasses.replace(plain.model, **changes))
    both = dataclasses.replace(plain.model, fusion="asff", backbone="resnet101")
    assert recipe("retinanet-r101-asff") == plain.replace(recipe="retinanet-r101-asff", model=both)


def test_retinanets_training_recipe() -> None:
    config = recipe("retinanet-r50-asff")
    assert (config.optimizer, config.learning_rate, config.momentum, config.weight_decay) == ("sgd", 1e-2, 0.9, 1e-4)
    assert (config.epochs, config.batch, config.size, config.sizes) == (12, 16, 800, (800,))
    assert not config.mixup
    assert config.augment == dataclasses.replace(AugmentConfig.none(), flip=0.5)


def test_retinanets_anchors() -> None:
    """Areas of 4 strides squared and its two octave steps up, in three ratios, doubled from level to level."""
    strides, anchors = level_anchors(recipe("retinanet-r50").model)
    assert strides == (128, 64, 32, 16, 8)
    for stride, level in zip(strides, anchors):
        scales = [(w * h) ** 0.5 / stride for w, h in level]
        assert scales == pytest.approx([4 * 2 ** (octave / 3) for octave in range(3) for _ in range(3)])
        assert [h / w for w, h in level] == pytest.approx([0.5, 1, 2] * 3)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("yolov3", "demo"))])
def test_levels_share_out_the_sizes_within_the_input(name: str) -> None:
    config = recipe(name)
    areas = [w * h for w, h in config.model.anchors]
    assert max(areas[:3]) < min(areas[3:6]) and max(areas[3:6]) < min(areas[6:])
    assert max(max(anchor) for anchor in config.model.anchors) <= config.size


def test_the_published_anchors() -> None:
    darknet = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (42, 119), (116, 90), (156, 198), (121, 240))
    assert recipe("yolov3-asff").model.anchors == darknet
    assert recipe("yolov3-mobilenetv2-asff").model.anchors == (*darknet[:8], (373, 326))


def test_the_papers_training_recipe() -> None:
    config = recipe("yolov3-asff")
    assert (config.epochs, config.batch, config.momentum, config.weight_decay) == (300, 64, 0.9, 5e-4)
    assert (config.learning_rate, config.final_learning_rate, config.tail_epochs) == (1e-3, 1e-5, 30)
    assert config.warmup_epochs in (4, 5)
    assert config.mixup and config.plain_epochs == 30
    assert (config.size, config.sizes, config.fixed_epochs) == (608, tuple(range(320, 609, 32)), 10)
    assert config.loss.ignore_iou == 0.7 and config.loss.iou_loss and config.loss.label_smoothing


def test_an_unknown_name_is_answered_with_the_list() -> None:
    with pytest.raises(InputError) as caught:
        recipe("yolov4")
    assert "yolov4" in str(caught.value)
    assert all(name in str(caught.value) for name in RECIPES)
