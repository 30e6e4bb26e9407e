"""Reads Darknet's `.weights` files: yolov3, yolov3-spp, and the backbone darknet53.conv.74.

A file is a header (int32 major, minor, revision, then the number of images seen), then float32 values, all little endian,
one convolution after the other in the order of the cfg: with batch norm its beta, gamma, mean, variance and weights, without
its bias and weights. The network and the number of classes follow from its length alone.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import struct
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.errors import InputError, ModelError
from runtime.files import PathLike, open_file
from train.config import TrainConfig
from train.model import build_model
from train.model.blocks import SPP, ConvBlock
from train.recipes import recipe
from train.weights.backbone import Backbone, empty_backbone
from train.weights.darknet_cfg import DarknetConfig, is_tiny, read_cfg, refuse_tiny
from train.weights.mapping import Published

log = logging.getLogger(__name__)

_NETWORKS = ("yolov3", "yolov3-spp")
_ORDER = [
    *("backbone", "neck.p5", "fusion.0.expand", "heads.0.predict"),
    *("neck.to_p4", "neck.p4", "fusion.1.expand", "heads.1.predict"),
    *("neck.to_p3", "neck.p3", "fusion.2.expand", "heads.2.predict"),
]
"""Our modules in the order of the cfg; inside each the order is the same."""
_MOST_CLASSES = 10_000
_LARGEST_VERSION = 1000  # Darknet's own sanity check of a header


def is_darknet(path: PathLike) -> bool:
    """True if a file begins as Darknet's do: with a small major and minor version, as no text, zip or pickle does."""
    with open_file(path) as file:
        header = file.read(_header_bytes(0, 0))
    if len(header) < _header_bytes(0, 0):
        return False
    return all(0 <= number < _LARGEST_VERSION for number in struct.unpack("<2i", header[:8]))


def read_darknet(path: PathLike, cfg: PathLike | None = None) -> Published | Backbone:
    """Reads the detector or backbone in a file for which `is_darknet` holds.

    Args:
        path: the file.
        cfg: its cfg, for anchors and input size; None assumes those of the published files, and says so.

    Raises:
        InputError: the cfg cannot be read, or is not that of the file.
        ModelError: its length is that of no network known here, or that of one which is refused.
    """
    described = read_cfg(cfg) if cfg else None
    with open_file(path) as file:
        start = _header_bytes(*struct.unpack("<2i", file.read(8)))
        size = os.fstat(file.fileno()).st_size

        def values() -> NDArray[np.float32]:  # read once their number is known to be that of a network
            file.seek(start)
            return np.frombuffer(file.read(), "<f4")

        backbone = empty_backbone("darknet53")
        if described is None and size - start == 4 * _count(backbone, [""]):
            return Backbone("darknet53", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), _fill(backbone, [""], values()))
        for name in _NETWORKS:
            one, two = (_count(_empty(name, classes), _ORDER) for classes in (1, 2))
            more, rest = divmod(size - start - 4 * one, 4 * (two - one))  # the length is linear in the number of classes
            if rest == 0 and 0 <= more < _MOST_CLASSES:
                model = _empty(name, more + 1)
                config = _configure(path, cfg, described, name, more + 1)
                return Published(config, more + 1, _fill(model, _ORDER, values()))
    if (size - start) % 4 == 0 and is_tiny((size - start) // 4):
        raise refuse_tiny(path)
    raise ModelError(f"{path}: Darknet weights of {size} bytes, which fit no network known here; {expected_sizes()}")


def _configure(path: PathLike, cfg: PathLike | None, described: DarknetConfig | None, name: str, classes: int) -> TrainConfig:
    """Returns the recipe of a network, with the anchors and the input size of its cfg."""
    config = recipe(name)
    if described is None:
        anchors = ", ".join(f"{width:g}x{height:g}" for width, height in config.model.anchors)
        log.warning(
            "%s: read as %s of %d classes with the anchors of the published file (%s); if its cfg has others, convert it with"
            " python -m train.weights %s --cfg FILE.cfg --output model.pt",
            *(path, name, classes, anchors, path),
        )
        return config
    network = _NETWORKS[described.spp]
    if (network, described.num_classes) != (name, classes):
        raise InputError(
            f"{cfg}: describes {network} of {described.num_classes} classes, but {path} has the length of {name} of {classes}"
            " classes; give the cfg that it was trained with"
        )
    height, width = described.size
    if height == width and height % 32 == 0:
        config = config.replace(size=height)
    return config.replace(model=dataclasses.replace(config.model, anchors=described.anchors))


def expected_sizes() -> str:
    """Lists the files that are accepted, with their lengths."""
    header = _header_bytes(0, 2)
    sizes = {name: header + 4 * _count(_empty(name, 80), _ORDER) for name in _NETWORKS}
    sizes["darknet53.conv.74"] = header + 4 * _count(empty_backbone("darknet53"), [""])
    return "expected " + " or ".join(f"{name} ({size} bytes)" for name, size in sizes.items()) + ", or other class counts"


def _header_bytes(major: int, minor: int) -> int:
    """From version 0.2 on, the images seen are counted in 8 bytes instead of 4."""
    return 20 if 10 * major + minor >= 2 else 16


def _empty(name: str, classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_model(recipe(name).model, classes)


def _convolutions(model: nn.Module, order: list[str]) -> Iterator[tuple[str, ConvBlock | nn.Conv2d, bool]]:
    """Lists (name, convolution, whether it follows the pooling) in the order of the cfg."""
    after_pooling = False
    for part in order:
        for name, module in model.get_submodule(part).named_modules(prefix=part):
            if isinstance(module, SPP):
                after_pooling = True
            elif isinstance(module, ConvBlock) or (isinstance(module, nn.Conv2d) and name == part):
                yield name, module, after_pooling
                after_pooling = False


def _count(model: nn.Module, order: list[str]) -> int:
    """Counts the float32 values in a file for this model."""
    total = 0
    for _, module, _ in _convolutions(model, order):
        conv = module.conv if isinstance(module, ConvBlock) else module
        total += conv.weight.numel() + conv.out_channels * (4 if isinstance(module, ConvBlock) else 1)
    return total


def _fill(model: nn.Module, order: list[str], values: NDArray[np.float32]) -> dict[str, Tensor]:
    """Fills a state dict of `model` with a file's values."""
    weights = {name: torch.tensor(0) for name in model.state_dict() if name.endswith(".num_batches_tracked")}
    position = 0

    def take(shape: tuple[int, ...]) -> Tensor:
        nonlocal position
        start, position = position, position + int(np.prod(shape))
        return torch.from_numpy(values[start:position].reshape(shape).copy())

    for name, module, after_pooling in _convolutions(model, order):
        if isinstance(module, ConvBlock):
            channels = (module.conv.out_channels,)
            beta, gamma, mean, variance = (take(channels) for _ in range(4))
            weight = take(tuple(module.conv.weight.shape))
            weights[f"{name}.conv.weight"] = _reorder_pools(weight) if after_pooling else weight
            norm = {"weight": _rescale(gamma, variance, module.norm.eps), "bias": beta, "running_mean": mean}
            weights.update({f"{name}.norm.{part}": value for part, value in norm.items()})
            weights[f"{name}.norm.running_var"] = variance
        else:
            weights[f"{name}.bias"] = take((module.out_channels,))
            weights[f"{name}.weight"] = take(tuple(module.weight.shape))
    return weights


def _rescale(gamma: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Computes the factor that makes our batch norm equal Darknet's.

    Darknet divides by sqrt(variance) + 1e-6, ours by sqrt(variance + eps): for the small variances that trained networks
    have, the difference would be far more than rounding.
    """
    wide = variance.double()
    return (gamma.double() * (wide + eps).sqrt() / (wide.sqrt() + 1e-6)).float()


def _reorder_pools(weight: Tensor) -> Tensor:
    """Reorders the input channels after the pooling: the cfg concatenates [13, 9, 5, input], ours [input, 5, 9, 13]."""
    outputs, inputs, height, width = weight.shape
    return weight.reshape(outputs, 4, inputs // 4, height, width).flip(1).reshape(weight.shape)
