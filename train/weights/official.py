"""Reads the checkpoints of the paper's authors: six variants, recognized and renamed (sections 2-4 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runtime.errors import ModelError
from runtime.files import PathLike
from train.config import TrainConfig
from train.model import build_model
from train.recipes import recipe
from train.weights.mapping import Pairs, Published, block, convert
from train.weights.torchvision import mobilenetv2_pairs

_LIST = "module_list"
_ANCHORS = 4  # of a guided head
_RESIDUALS = (1, 2, 8, 8, 4)  # units in each stage of DarkNet-53

_VARIANTS = {
    ("darknet53", "asff", False): "yolov3-asff",
    ("darknet53", "asff", True): "yolov3-asff-star",
    ("darknet53", "none", False): "yolov3-baseline",
    ("darknet53", "none", True): "yolov3-baseline-rfb",
    ("mobilenetv2", "asff", False): "yolov3-mobilenetv2-asff",
    ("mobilenetv2", "none", False): "yolov3-mobilenetv2",
}
"""(backbone, fusion, receptive field blocks) of the published checkpoints, and our recipes for them."""


ALIASES = {
    "asff": "yolov3-asff",
    "asff_star": "yolov3-asff-star",
    "baseline": "yolov3-baseline",
    "baseline_rfb": "yolov3-baseline-rfb",
    "mobile": "yolov3-mobilenetv2",
    "mobile_asff": "yolov3-mobilenetv2-asff",
}
"""Short names of the published variants."""


def is_official(tensors: Mapping[str, Tensor]) -> bool:
    """True if a state dict is named as the authors' are."""
    return any(name.startswith(f"{_LIST}.") for name in tensors)


def read_official(path: PathLike, tensors: Mapping[str, Tensor]) -> Published:
    """Reads the detector in a state dict for which `is_official` holds (without a `module.` prefix).

    Raises:
        ModelError: no published variant; tensors are missing, left over, or of another shape; the class count is not whole.
    """
    # They were trained on images whose aspect ratio was not kept.
    config = recipe(_variant(path, tensors)).replace(resize="stretch")
    pairs = official_pairs(config)
    head = next(theirs for theirs, ours in pairs if ours == "heads.0.predict")
    classes = _num_classes(path, tensors, head)
    with torch.device("meta"):
        model = build_model(config.model, classes)
    return Published(config, classes, convert(path, f"the published {config.recipe}", tensors, pairs, model))


def _variant(path: PathLike, tensors: Mapping[str, Tensor]) -> str:
    """Recognizes the recipe by names that only some of the variants have."""
    backbone = "mobilenetv2" if any(name.startswith("level_0_conv.") for name in tensors) else "darknet53"
    fusion = "asff" if any(".weight_level_" in name for name in tensors) else "none"
    rfb = any(".rfb." in name for name in tensors)
    if (backbone, fusion, rfb) not in _VARIANTS:
        raise ModelError(f"{path}: a receptive field block on {backbone}, expected one of {', '.join(_VARIANTS.values())}")
    return _VARIANTS[backbone, fusion, rfb]


def _num_classes(path: PathLike, tensors: Mapping[str, Tensor], head: str) -> int:
    """Computes C from a head's channels: 4 anchors of 5 + C each."""
    name = f"{head}.weight"
    if name not in tensors or not tensors[name].dim():
        raise ModelError(f"{path}: looks like a published checkpoint, but lacks its head {name}")
    channels = len(tensors[name])
    classes = channels // _ANCHORS - 5
    if channels % _ANCHORS or classes < 1:
        raise ModelError(f"{path}: its head {name} has {channels} channels, expected 4 x (5 + the number of classes)")
    return classes


def official_pairs(config: TrainConfig) -> Pairs:
    """Lists (their prefix, our prefix) for every tensor of a published variant."""
    if config.model.backbone == "mobilenetv2":
        return mobilenetv2_pairs(_LIST, "backbone") + _numbered(19, _neck()) + _levels("level_{}_conv", config.model.fusion)
    if config.model.fusion == "asff":
        return _darknet() + _numbered(11, _neck(p3=["widen"])) + _levels("level_{}_fusion", "asff")
    p5, p4, p3 = ([f"fusion.{level}.expand", f"heads.{level}"] for level in range(3))
    return _darknet() + _numbered(11, _neck(p5, p4, p3))


def _darknet() -> Pairs:
    """Entry 0 is the first convolution; then each stage is a convolution and an entry with all its residual units."""
    pairs = block(f"{_LIST}.0", "backbone.stem")
    for stage, units in enumerate(_RESIDUALS):
        number, ours = 1 + 2 * stage, f"backbone.stages.{stage}"
        pairs += block(f"{_LIST}.{number}", f"{ours}.0")
        for unit in range(units):
            pairs += _pair_of_blocks(f"{_LIST}.{number + 1}.{_LIST}.{unit}", f"{ours}.{unit + 1}.body")
    return pairs


def _neck(p5: Sequence[str] = (), p4: Sequence[str] = (), p3: Sequence[str] = ()) -> list[str]:
    """Returns our names of the neck's entries in their order; the names after a level are given by the caller.

    "" stands for SPP, DropBlock and up-sampling, which take a number but hold nothing.
    """
    return [
        *("neck.p5.0", "neck.p5.1", "", "neck.p5.3", "neck.p5.4", "", "neck.p5.6", *p5),
        *("neck.to_p4", "", "neck.p4.0", "neck.p4.1", "", "neck.p4.3", "neck.p4.4", *p4),
        *("neck.to_p3", "", "neck.p3.0", "neck.p3.1", "", "neck.p3.3", "neck.p3.4", *p3),
    ]


def _numbered(first: int, modules: Sequence[str]) -> Pairs:
    pairs: Pairs = []
    for number, ours in enumerate(modules, first):
        theirs = f"{_LIST}.{number}"
        if ours in ("neck.p5.0", "neck.p4.3", "neck.p3.3"):
            pairs += _pair_of_blocks(f"{theirs}.{_LIST}.0", ours)
        elif ours.startswith("heads."):
            pairs += _head(theirs, ours)
        elif ours:
            pairs += block(theirs, ours)
    return pairs


def _levels(fusion: str, kind: str) -> Pairs:
    """Pairs fusion and head of the three levels where they stand outside the list; `fusion` is a name with {} for the level."""
    pairs: Pairs = []
    for level in range(3):
        theirs, ours = fusion.format(level), f"fusion.{level}"
        pairs += _asff(theirs, ours, level) if kind == "asff" else block(theirs, f"{ours}.expand")
        pairs += _head(f"level_{level}_header", f"heads.{level}")
    return pairs


def _asff(theirs: str, ours: str, level: int) -> Pairs:
    pairs = [(f"{theirs}.weight_levels", f"{ours}.weights.weigh"), *block(f"{theirs}.expand", f"{ours}.expand")]
    for source in range(3):
        pairs += block(f"{theirs}.weight_level_{source}", f"{ours}.weights.compress.{source}")
        resize = "compress" if source < level else "stride"  # a coarser level is up-sampled, a finer one down-sampled
        pairs += block(f"{theirs}.{resize}_level_{source}", f"{ours}.resize.{source}.conv")
    return pairs


def _head(theirs: str, ours: str) -> Pairs:
    adaption = f"{theirs}.Feature_adaption"
    return [
        (f"{theirs}.guide_wh", f"{ours}.guide"),
        (f"{adaption}.conv_offset", f"{ours}.adapt.offsets"),
        (f"{adaption}.dconv", f"{ours}.adapt.conv"),
        *((f"{adaption}.rfb.branch_{branch}", f"{ours}.adapt.rfb.branches.{branch}") for branch in range(4)),
        (f"{theirs}.conv", f"{ours}.predict"),
    ]


def _pair_of_blocks(theirs: str, ours: str) -> Pairs:
    """A `unit`: its two convolutions are numbered on both sides."""
    return block(f"{theirs}.0", f"{ours}.0") + block(f"{theirs}.1", f"{ours}.1")
