"""YOLOv3: backbone, neck, fusion, heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runtime.spec import Anchors
from train.config import LossConfig
from train.losses.head_output import HeadOutput, upcast
from train.losses.packing import PackedTargets
from train.losses.yolo_loss import COMPONENTS, YoloMatcher, detection_loss
from train.losses.yolo_targets import AnchorSet
from train.model.detector import DetectorModel
from train.model.fusion import LevelFusion
from train.model.head import Head
from train.model.neck import Neck


class YOLOv3(DetectorModel):
    """YOLOv3 with any fusion, guided or not. Build one with `train.model.build_model`.

    Args:
        backbone: maps images to C3, C4, C5.
        neck: maps those to P5, P4, P3.
        widen: applied to P3 before fusion.
        fusion: one per level.
        heads: one per level.
        anchors: of all levels.
        loss: options of the loss.
    """

    components = COMPONENTS

    def __init__(
        self,
        backbone: nn.Module,
        neck: Neck,
        widen: nn.Module,
        fusion: Sequence[LevelFusion],
        heads: Sequence[Head],
        anchors: AnchorSet,
        num_classes: int,
        loss: LossConfig,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.widen = backbone, neck, widen
        self.fusion, self.heads = nn.ModuleList(fusion), nn.ModuleList(heads)
        self.anchors, self.num_classes, self.loss_config = anchors, num_classes, loss
        self.strides, self.level_anchors = anchors.strides, anchors.per_level

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DetectorModel.pyramid`."""
        p5, p4, p3 = self.neck(*self.backbone(images))
        return p5, p4, self.widen(p3)

    def head_outputs(self, images: Tensor) -> list[HeadOutput]:
        """Normalized images float `[N, 3, H, W]` to one `HeadOutput` per level (stride 32, 16, 8)."""
        features = self.pyramid(images)
        return [head(fuse(features)) for fuse, head in zip(self.fusion, self.heads)]

    def outputs(self, images: Tensor) -> list[HeadOutput]:
        """See `DetectorModel.outputs`."""
        return self.head_outputs(images)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Per level float32 `[N, A * (5 + C), H/s, W/s]` with the guiding folded in."""
        return [upcast(output.fold(self.num_classes)) for output in self.head_outputs(images)]

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DetectorModel.decode`."""
        return decode_maps(maps, self.level_anchors, self.strides)

    @property
    def matcher(self) -> YoloMatcher:
        """See `DetectorModel.matcher`."""
        return YoloMatcher(self.anchors, self.loss_config)

    def normalizer(self, images: Tensor, targets: PackedTargets) -> int:
        """The number of images; see `DetectorModel.normalizer`."""
        return len(images)

    def loss(self, images: Tensor, targets: Tensor | PackedTargets, normalizer: Tensor | None = None) -> dict[str, Tensor]:
        """Scalars `anchor, iou, offset, objectness, classes, total` (paper section 2 and 3; see `detection_loss`)."""
        outputs = (self.compiled or self.outputs)(images)
        return detection_loss(outputs, targets, self.anchors, self.num_classes, self.loss_config, normalizer)


def decode_maps(maps: Sequence[Tensor], anchors: Anchors, strides: Sequence[int]) -> Tensor:
    """Decodes raw maps to `[N, total anchors, 5 + C]`: cx, cy, w, h in input pixels, objectness and class probabilities.

    Levels in order; within a level anchor-major, then row, then column.
    """
    decoded = []
    for raw, level_anchors, stride in zip(maps, anchors, strides):
        channels, height, width = (int(side) for side in raw.shape[1:])
        count = len(level_anchors)
        t = raw.reshape(-1, count, channels // count, height, width).permute(0, 1, 3, 4, 2)
        sides = torch.tensor(level_anchors, dtype=t.dtype, device=t.device).reshape(1, count, 1, 1, 2)
        rows = torch.arange(height, dtype=t.dtype, device=t.device)
        columns = torch.arange(width, dtype=t.dtype, device=t.device)
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # [H, W, (x, y)]
        centers = (torch.sigmoid(t[..., :2]) + cells) * stride
        boxes = torch.cat([centers, sides * torch.exp(t[..., 2:4]), torch.sigmoid(t[..., 4:])], dim=-1)
        decoded.append(boxes.flatten(1, 3))
    return torch.cat(decoded, dim=1)
