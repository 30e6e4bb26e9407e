"""Every recipe is a valid detector, and what sets it apart is what its name says."""

from __future__ import annotations

import contextlib

import pytest
import torch

from runtime.errors import InputError
from train.model import build_model
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
    assert [tuple(m.shape) for m in maps] == [(1, 32, 64 // s, 32 // s) for s in (32, 16, 8)]
    assert model.loss_config == config.loss
    assert not small or all(torch.isfinite(m).all() for m in maps)


@pytest.mark.parametrize(
    ("name", "backbone", "fusion", "adaption"),
    [
        ("yolov3-asff", "darknet53", "asff", True),
        ("yolov3-baseline", "darknet53", "none", True),
        ("yolov3-sum", "darknet53", "sum", True),
        ("yolov3-concat", "darknet53", "concat", True),
        ("yolov3-mobilenetv2-asff", "mobilenetv2", "asff", False),
        ("yolov3-mobilenetv2", "mobilenetv2", "none", False),
        ("yolov3-asff-small", "darknet53", "asff", True),
        ("yolov3-mobilenetv2-asff-small", "mobilenetv2", "asff", False),
        ("demo", "darknet53", "asff", True),
    ],
)
def test_what_a_name_promises(name: str, backbone: str, fusion: str, adaption: bool) -> None:
    model = recipe(name).model
    assert (model.backbone, model.fusion, model.adaption, model.guided) == (backbone, fusion, adaption, True)


def test_the_paper_recipes_differ_in_the_model_alone() -> None:
    names = ("yolov3-baseline", "yolov3-sum", "yolov3-concat")
    paper = recipe("yolov3-asff")
    assert all(recipe(name).replace(recipe=paper.recipe, model=paper.model) == paper for name in names)


@pytest.mark.parametrize("name", RECIPES)
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
