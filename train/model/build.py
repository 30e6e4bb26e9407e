"""Builds every detector; all constants that make a variant stand here."""

from __future__ import annotations

from torch import nn

from runtime.spec import Anchors
from train.config import LossConfig, ModelConfig
from train.losses.yolo_targets import AnchorSet
from train.model.backbones.darknet import DarkNet53
from train.model.backbones.mobilenet import MobileNetV2
from train.model.backbones.resnet import RESNET50, RESNET101, ResNet
from train.model.blocks import ConvBlock, scaled
from train.model.detector import DetectorModel
from train.model.fpn import FPN, CoarseLevels
from train.model.fusion import LevelFusion
from train.model.head import Head
from train.model.neck import Neck
from train.model.retinanet import RetinaHead, RetinaNet
from train.model.yolo import YOLOv3

STRIDES = (32, 16, 8)
RETINANET_STRIDES = (128, 64, *STRIDES)
_HEAD_CHANNELS = (1024, 512, 256)
_FPN_CHANNELS = 256


def level_anchors(config: ModelConfig) -> tuple[tuple[int, ...], Anchors]:
    """Returns the strides of the output levels, coarsest first, and (width, height) in pixels of each one's anchors."""
    if config.detector == "retinanet":
        finest = RETINANET_STRIDES[-1]
        return RETINANET_STRIDES, tuple(
            tuple((w * stride / finest, h * stride / finest) for w, h in config.anchors) for stride in RETINANET_STRIDES
        )
    return STRIDES, AnchorSet.from_base(config.anchors, STRIDES, config.guided).per_level


def build_model(config: ModelConfig, num_classes: int, loss: LossConfig | None = None) -> DetectorModel:
    """Builds a freshly initialized detector (MSRA for convolutions).

    Args:
        config: of the model.
        num_classes: C, at least 1.
        loss: of YOLOv3; RetinaNet's has no options.
    """
    if config.detector == "retinanet":
        return _retinanet(config, num_classes)
    return _yolov3(config, num_classes, loss or LossConfig())


def _yolov3(config: ModelConfig, num_classes: int, loss: LossConfig) -> YOLOv3:
    anchors = AnchorSet.from_base(config.anchors, STRIDES, config.guided)
    is_darknet = config.backbone == "darknet53"
    backbone = DarkNet53(config.width, config.depth) if is_darknet else MobileNetV2(config.width)
    neck = Neck(backbone.channels, config.width, backbone.act, config.spp)
    p5, p4, p3 = neck.channels
    widen: nn.Module = nn.Identity()
    if is_darknet and config.fusion != "none":  # P3 gets as many channels as P4 before it is fused
        widen = ConvBlock(p3, scaled(256, config.width), 3)
        p3 = scaled(256, config.width)
    outputs = [scaled(channels, config.width) for channels in _HEAD_CHANNELS]
    fusion = [
        LevelFusion((p5, p4, p3), outputs[level], level, config.fusion, config.compress, backbone.act) for level in range(3)
    ]
    base_anchors = len(config.anchors) // 3
    heads = [Head(channels, num_classes, base_anchors, config.guided, config.adaption, config.rfb) for channels in outputs]
    for module in (backbone, neck, widen, *fusion):
        module.apply(_initialize)
    return YOLOv3(backbone, neck, widen, fusion, heads, anchors, num_classes, loss)


def _retinanet(config: ModelConfig, num_classes: int) -> RetinaNet:
    strides, anchors = level_anchors(config)
    blocks = RESNET50 if config.backbone == "resnet50" else RESNET101
    backbone = ResNet(blocks, config.width, config.depth)
    channels = scaled(_FPN_CHANNELS, config.width)
    fpn, coarse = FPN(backbone.channels, channels), CoarseLevels(backbone.channels[-1], channels)
    fusion: list[LevelFusion] = []
    if config.fusion != "none":
        levels = range(len(STRIDES))
        fusion = [
            LevelFusion((channels,) * 3, channels, level, config.fusion, config.compress, backbone.act) for level in levels
        ]
    head = RetinaHead(channels, num_classes, len(config.anchors))
    # The paper's start of the towers is made for their full width: in narrow ones the signal fades within four convolutions.
    narrow = [*head.classes][:-1] + [*head.boxes][:-1] if config.width < 1 else []
    for module in (backbone, fpn, coarse, *fusion, *narrow):
        module.apply(_initialize)
    return RetinaNet(backbone, fpn, coarse, fusion, head, strides, anchors, num_classes)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
