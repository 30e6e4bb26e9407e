"""Reads what a Darknet cfg says about a YOLOv3: anchors, classes and input size; names the networks that are not read here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.errors import InputError, ModelError
from runtime.files import PathLike, read_text

Section = tuple[str, dict[str, str]]
_LEVELS = 3
_TINY = "yolov3-tiny is not read: it detects on two levels, the paper's networks on three; use yolov3 or yolov3-spp"
_GAUSSIAN = "Gaussian YOLOv3 is not read: its heads predict the uncertainty of each box too; use yolov3 or yolov3-spp"
_ACTIVATIONS = frozenset({"leaky", "linear"})

# (inputs, outputs, kernel) of yolov3-tiny's convolutions with batch norm; its two heads take 512 and 256 channels.
_TINY_LAYERS = (
    *((3, 16, 3), (16, 32, 3), (32, 64, 3), (64, 128, 3), (128, 256, 3), (256, 512, 3), (512, 1024, 3)),
    *((1024, 256, 1), (256, 512, 3), (256, 128, 1), (384, 256, 3)),
)
_TINY_HEADS = (512, 256)


@dataclass(frozen=True)
class DarknetConfig:
    """What a cfg says.

    Attributes:
        anchors: 9 base anchors (width, height) in pixels, 3 a level, the finest level first.
        num_classes: C.
        size: (height, width) of the network's input in pixels.
        spp: the network pools its last map, as yolov3-spp does.
    """

    anchors: tuple[tuple[float, float], ...]
    num_classes: int
    size: tuple[int, int]
    spp: bool


def read_cfg(path: PathLike) -> DarknetConfig:
    """Reads the cfg of a yolov3 or yolov3-spp.

    Raises:
        InputError: it cannot be read, or contradicts itself.
        ModelError: it describes another network.
    """
    try:
        sections = list(_sections(read_text(path)))
    except ValueError as error:
        raise InputError(f"{path}: not readable as a Darknet cfg ({error})") from error
    kinds = [kind for kind, _ in sections]
    heads = [(sections[index - 1][1], options) for index, (kind, options) in enumerate(sections) if kind == "yolo"]
    _check_network(path, kinds, len(heads), sections)
    try:
        net = sections[0][1]
        size = int(net["height"]), int(net["width"])
        classes = {int(options["classes"]) for _, options in heads}
        levels = [_level_anchors(options) for _, options in heads]
        filters = {int(conv["filters"]) for conv, _ in heads}
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not the cfg of a yolov3: a value is missing or no number ({error})") from error
    if len(classes) > 1 or min(classes) < 1 or filters != {3 * (5 + min(classes))}:
        raise InputError(
            f"{path}: contradicts itself: classes={sorted(classes)} need filters={3 * (5 + min(classes))} before each [yolo],"
            f" found {sorted(filters)}"
        )
    anchors = tuple(anchor for level in reversed(levels) for anchor in level)
    if any(len(level) != _LEVELS for level in levels) or any(side <= 0 for anchor in anchors for side in anchor):
        raise InputError(f"{path}: expected 3 positive anchors in each mask, found {levels}")
    return DarknetConfig(anchors, min(classes), size, "maxpool" in kinds)


def _sections(text: str) -> Iterator[Section]:
    options: dict[str, str] = {}
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("[") and line.endswith("]"):
            options = {}
            yield line[1:-1].strip().lower(), options
        elif "=" in line and not line.startswith(";"):
            key, value = line.split("=", 1)
            options[key.strip()] = value.strip()


def _check_network(path: PathLike, kinds: list[str], heads: int, sections: list[Section]) -> None:
    if "gaussian_yolo" in kinds:
        raise ModelError(f"{path}: {_GAUSSIAN}")
    if heads == _LEVELS - 1:
        raise ModelError(f"{path}: {_TINY}")
    if not kinds or kinds[0] not in ("net", "network") or heads != _LEVELS:
        raise ModelError(f"{path}: not the cfg of a yolov3: expected [net] first and 3 [yolo] sections, found {heads}")
    activations = {options.get("activation", "leaky") for kind, options in sections if kind == "convolutional"}
    if activations - _ACTIVATIONS:
        others = ", ".join(sorted(activations - _ACTIVATIONS))
        raise ModelError(f"{path}: not the cfg of a yolov3: its convolutions use {others}; expected leaky or linear")


def _level_anchors(options: dict[str, str]) -> list[tuple[float, float]]:
    numbers = [float(text) for text in options["anchors"].split(",")]
    pairs = list(zip(numbers[::2], numbers[1::2]))
    masks = [int(text) for text in options["mask"].split(",")]
    if min(masks) < 0:
        raise ValueError(f"mask={options['mask']}")
    return [pairs[index] for index in masks]


def is_tiny(values: int) -> bool:
    """Tells whether a file of so many float32 values is a yolov3-tiny of any number of classes."""
    body = sum(inputs * outputs * kernel**2 + 4 * outputs for inputs, outputs, kernel in _TINY_LAYERS)
    per_channel = sum(inputs + 1 for inputs in _TINY_HEADS)
    channels, rest = divmod(values - body, per_channel)
    return rest == 0 and channels % 3 == 0 and channels > 15


def refuse_tiny(path: PathLike) -> ModelError:
    """Returns the error for weights of yolov3-tiny."""
    return ModelError(f"{path}: {_TINY}")
