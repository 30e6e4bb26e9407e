"""RetinaNet (arXiv 1708.02002): backbone, feature pyramid, fusion of its three finest levels, one head for all levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runtime.spec import Anchors
from train.losses.head_output import upcast
from train.losses.packing import PackedTargets
from train.losses.retinanet_loss import COMPONENTS, RetinaMatcher, count_positives, retina_loss
from train.losses.retinanet_targets import anchor_boxes, decode_boxes
from train.model.backbones.resnet import ResNet
from train.model.detector import DetectorModel
from train.model.fpn import FPN, CoarseLevels
from train.model.fusion import LevelFusion

_TOWER = 4  # convolutions before each of the head's two predictions
_PRIOR = 0.01  # initial probability of every class: nearly every anchor is background


class RetinaHead(nn.Module):
    """Head that all levels share: a tower of conv3 and ReLU each for classes and boxes.

    Args:
        channels: of the input and the towers.
        num_classes: C.
        anchors: A, of a cell.
    """

    def __init__(self, channels: int, num_classes: int, anchors: int) -> None:
        super().__init__()
        self.anchors, self.num_classes = anchors, num_classes
        self.classes = _tower(channels, anchors * num_classes, -math.log((1 - _PRIOR) / _PRIOR))
        self.boxes = _tower(channels, anchors * 4, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, H, W]` to `[N, A * (4 + C), H, W]`, channels anchor-major (tx, ty, tw, th, class logits)."""
        height, width = (int(side) for side in x.shape[2:])
        boxes = self.boxes(x).reshape(-1, self.anchors, 4, height, width)
        classes = self.classes(x).reshape(-1, self.anchors, self.num_classes, height, width)
        return torch.cat([boxes, classes], dim=2).reshape(-1, self.anchors * (4 + self.num_classes), height, width)


def _tower(channels: int, outputs: int, bias: float) -> nn.Sequential:
    hidden = [layer for _ in range(_TOWER) for layer in (_conv(channels, channels), nn.ReLU(inplace=True))]
    return nn.Sequential(*hidden, _conv(channels, outputs, bias))


def _conv(inputs: int, outputs: int, bias: float = 0.0) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return conv


class RetinaNet(DetectorModel):
    """RetinaNet, with or without fusion of P5, P4, P3. Build one with `train.model.build_model`.

    Args:
        backbone: maps images to C3, C4, C5.
        fpn: maps those to P5, P4, P3.
        coarse: maps C5 to P7, P6.
        fusion: one each for P5, P4, P3, or none at all.
        head: of all levels.
        strides: of the levels, coarsest (P7) first.
        anchors: of the levels, coarsest first.
    """

    components = COMPONENTS

    def __init__(
        self,
        backbone: ResNet,
        fpn: FPN,
        coarse: CoarseLevels,
        fusion: Sequence[LevelFusion],
        head: RetinaHead,
        strides: tuple[int, ...],
        anchors: Anchors,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.backbone, self.fpn, self.coarse = backbone, fpn, coarse
        self.fusion, self.head = nn.ModuleList(fusion), head
        self.strides, self.level_anchors, self.num_classes = strides, anchors, num_classes

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DetectorModel.pyramid`."""
        pyramid: tuple[Tensor, Tensor, Tensor] = self.fpn(*self.backbone(images))
        return pyramid

    def maps(self, images: Tensor) -> list[Tensor]:
        """Per level, P7 to P3, float32 `[N, A * (4 + C), ceil(H/s), ceil(W/s)]`."""
        c3, c4, c5 = self.backbone(images)
        fine = self.fpn(c3, c4, c5)
        if self.fusion:
            fine = [fuse(fine) for fuse in self.fusion]
        return [upcast(self.head(level)) for level in (*self.coarse(c5), *fine)]

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DetectorModel.decode`; the objectness is 1, since the classes alone decide."""
        decoded = []
        for raw, sides, stride in zip(maps, self.level_anchors, self.strides):
            channels, height, width = (int(side) for side in raw.shape[1:])
            t = raw.reshape(-1, len(sides), channels // len(sides), height, width).permute(0, 1, 3, 4, 2)
            rows = t.flatten(1, 3)  # [N, A * H * W, 4 + C]
            anchors = anchor_boxes(sides, stride, (height, width), raw.device)
            boxes = decode_boxes(rows[..., :4], anchors)
            decoded.append(torch.cat([boxes, torch.ones_like(boxes[..., :1]), torch.sigmoid(rows[..., 4:])], dim=2))
        return torch.cat(decoded, dim=1)

    @property
    def matcher(self) -> RetinaMatcher:
        """See `DetectorModel.matcher`."""
        return RetinaMatcher(self.level_anchors, self.strides)

    def normalizer(self, images: Tensor, targets: PackedTargets) -> int:
        """The number of positive anchors; see `DetectorModel.normalizer`."""
        return count_positives(targets, len(self.strides))

    def loss(self, images: Tensor, targets: Tensor | PackedTargets, normalizer: Tensor | None = None) -> dict[str, Tensor]:
        """Scalars `classes, boxes, total`; see `retina_loss`."""
        return retina_loss((self.compiled or self.outputs)(images), targets, self.level_anchors, self.strides, normalizer)
