"""Reads backbones in torchvision's layout, trained on ImageNet, without their classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from runtime.files import PathLike
from train.model.backbones.resnet import RESNET50, RESNET101
from train.weights.backbone import Backbone, empty_backbone
from train.weights.mapping import Pairs, convert

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # inverted residuals in each of our stages; torchvision numbers them through, from 1


def mobilenetv2_pairs(theirs: str, ours: str) -> Pairs:
    """Torchvision's MobileNetV2, whose `features` are called `theirs`, as our backbone called `ours`."""
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


def _resnet_pairs(blocks: Sequence[int]) -> Pairs:
    """Torchvision's ResNet with `blocks` bottlenecks a stage, as our backbone."""
    pairs: Pairs = [("conv1", "stem.conv"), ("bn1", "stem.norm")]
    for stage, count in enumerate(blocks):
        for index in range(count):
            outer, inner = f"layer{stage + 1}.{index}", f"stages.{stage}.{index}"
            for part in (1, 2, 3):
                pairs += [
                    (f"{outer}.conv{part}", f"{inner}.conv{part}.conv"),
                    (f"{outer}.bn{part}", f"{inner}.conv{part}.norm"),
                ]
            pairs += _block(f"{outer}.downsample", f"{inner}.downsample")
    return pairs


_BACKBONES: dict[str, tuple[str, Pairs]] = {
    # our name: (a tensor that only this one has, its map)
    "mobilenetv2": ("features.18.0.weight", [(a, b.removeprefix(".")) for a, b in mobilenetv2_pairs("features", "")]),
    "resnet101": (f"layer3.{RESNET101[2] - 1}.conv1.weight", _resnet_pairs(RESNET101)),
    "resnet50": (f"layer3.{RESNET50[2] - 1}.conv1.weight", _resnet_pairs(RESNET50)),
}
_CLASSIFIERS = ("classifier.", "fc.")


def find_torchvision(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the backbone in a state dict of torchvision, or None if it is not one known here."""
    return next((name for name, (mark, _) in _BACKBONES.items() if mark in tensors), None)


def read_torchvision(path: PathLike, name: str, tensors: Mapping[str, Tensor]) -> Backbone:
    """Reads the backbone that `find_torchvision` found.

    Raises:
        ModelError: tensors are missing, left over, or of another shape.
    """
    features = {key: value for key, value in tensors.items() if not key.startswith(_CLASSIFIERS)}
    weights = convert(path, f"torchvision's {name}", features, _BACKBONES[name][1], empty_backbone(name))
    return Backbone(name, IMAGENET_MEAN, IMAGENET_STD, weights)
