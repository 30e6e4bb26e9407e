"""Backbones in torchvision's layout, trained on ImageNet. Their classifiers are left out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from runtime.files import PathLike
from train.weights.backbone import Backbone, empty_backbone
from train.weights.mapping import Pairs, convert

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MARK = "features.18.0.weight"  # the 1x1 convolution to 1280 channels
_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # inverted residuals in each of our stages; torchvision numbers them through, from 1


def mobilenetv2_pairs(theirs: str, ours: str) -> Pairs:
    """torchvision's MobileNetV2, whose `features` are called `theirs`, as our backbone called `ours`."""
    pairs = [*_block(f"{theirs}.0", f"{ours}.stem"), *_block(f"{theirs}.18", f"{ours}.top")]
    number = 1
    for stage, count in enumerate(_BLOCKS):
        for index in range(count):
            outer, inner = f"{theirs}.{number}.conv", f"{ours}.stages.{stage}.{index}.body"
            linear = 1 if number == 1 else 2  # the first block has no expansion
            for part in range(linear):
                pairs += _block(f"{outer}.{part}", f"{inner}.{part}")
            pairs += [(f"{outer}.{linear}", f"{inner}.{linear}.conv"), (f"{outer}.{linear + 1}", f"{inner}.{linear}.norm")]
            number += 1
    return pairs


def _block(theirs: str, ours: str) -> Pairs:
    """A `ConvBlock` whose parts are numbered."""
    return [(f"{theirs}.0", f"{ours}.conv"), (f"{theirs}.1", f"{ours}.norm")]


def is_torchvision(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is a MobileNetV2 of torchvision."""
    return _MARK in tensors


def read_torchvision(path: PathLike, tensors: Mapping[str, Tensor]) -> Backbone:
    """The backbone in a state dict for which `is_torchvision` holds.

    Raises:
        ModelError: tensors are missing, left over, or of another shape.
    """
    features = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
    name = "mobilenetv2"
    pairs = [(theirs, ours.removeprefix(".")) for theirs, ours in mobilenetv2_pairs("features", "")]
    weights = convert(path, "torchvision's mobilenet_v2", features, pairs, empty_backbone(name))
    return Backbone(name, IMAGENET_MEAN, IMAGENET_STD, weights)
