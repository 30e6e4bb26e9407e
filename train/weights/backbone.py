"""Reads and writes backbones trained on classification, from which a training can start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import ModelError
from runtime.files import PathLike
from train import checkpoint
from train.model.backbones.darknet import DarkNet53
from train.model.backbones.mobilenet import MobileNetV2
from train.model.backbones.resnet import RESNET50, RESNET101, ResNet

KIND = "yolov3-asff-backbone"
_VERSION = 1
_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "darknet53": DarkNet53,
    "mobilenetv2": MobileNetV2,
    "resnet50": lambda: ResNet(RESNET50),
    "resnet101": lambda: ResNet(RESNET101),
}


@dataclass(frozen=True)
class Backbone:
    """Weights of a backbone.

    Attributes:
        name: as in `ModelConfig.backbone`.
        mean: per RGB channel; it was trained on `(pixel / 255 - mean) / std`.
        std: per RGB channel.
        weights: the backbone's state dict, float32.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: dict[str, Tensor]


def empty_backbone(name: str) -> nn.Module:
    """Builds the backbone of that name at full width on the meta device: names and shapes alone."""
    with torch.device("meta"):
        return _BUILDERS[name]()


def check_backbone(path: PathLike, backbone: Backbone) -> Backbone:
    """Returns the backbone if it is whole and finite, else raises ModelError."""
    checkpoint.load_weights(path, _BUILDERS[backbone.name](), backbone.weights)
    return backbone


def save_backbone(path: PathLike, backbone: Backbone) -> None:
    """Writes a backbone, whole or not at all."""
    checkpoint.write(path, {"kind": KIND, "version": _VERSION, **vars(backbone)})


def parse_backbone(path: PathLike, content: Mapping[str, Any]) -> Backbone:
    """Parses the backbone in a file's content.

    Raises:
        ModelError: another version, an unknown backbone, something missing, or weights that do not fit or are not finite.
    """
    if content.get("version") != _VERSION:
        raise ModelError(f"{path}: backbone file version {content.get('version')!r}, this code reads {_VERSION}")
    name = content.get("name")
    if name not in _BUILDERS:
        raise ModelError(f"{path}: holds a backbone {name!r}, expected {' or '.join(_BUILDERS)}")
    weights: Any = content.get("weights")
    return check_backbone(path, Backbone(name, _triple(path, content, "mean"), _triple(path, content, "std"), weights))


def _triple(path: PathLike, content: Mapping[str, Any], field: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(value) for value in content[field])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the backbone file lacks or misstates its {field}; expected 3 numbers") from error
    return first, second, third
