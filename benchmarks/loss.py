"""Times the loss without the network, at 608 pixels, batch 8 and 20 labels an image.

The reference is the rule that leaves overlapping background out, alone and as it is usually written: the IoU of every decoded
box with every label.

Example: `python -m benchmarks.loss`
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from benchmarks.timing import alternate
from runtime import cli
from train.config import DARKNET_ANCHORS, LossConfig
from train.losses.head_output import HeadOutput
from train.losses.yolo_loss import detection_loss
from train.losses.yolo_targets import AnchorSet, box_iou, match
from train.model.yolo import decode_maps

SIDE, BATCH, LABELS, CLASSES, STRIDES = 608, 8, 20, 80, (32, 16, 8)


def make_outputs() -> list[HeadOutput]:
    """Makes random head outputs that require gradients."""
    outputs = []
    for stride in STRIDES:
        side = SIDE // stride
        raw = (torch.randn(BATCH, 4 * (5 + CLASSES), side, side) * 0.5).requires_grad_()
        outputs.append(HeadOutput(raw, (torch.randn(BATCH, 8, side, side) * 0.1).requires_grad_()))
    return outputs


def make_labels() -> Tensor:
    """Makes random labels `[N, M, 6]` of COCO-like sizes."""
    labels = torch.ones(BATCH, LABELS, 6)
    labels[..., 0] = torch.randint(0, CLASSES, (BATCH, LABELS))
    labels[..., 1:3] = torch.rand(BATCH, LABELS, 2) * SIDE
    labels[..., 3:5] = torch.exp(torch.rand(BATCH, LABELS, 2) * 3.5 + 2.3)
    return labels


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser(
        "benchmarks.loss", "Time the loss at 608 pixels, batch 8, 20 labels an image.", "python -m benchmarks.loss"
    )
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    outputs, labels, anchors = make_outputs(), make_labels(), AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, guided=True)

    def forward() -> Tensor:
        return detection_loss(outputs, labels, anchors, CLASSES, LossConfig())["total"]

    @torch.no_grad()
    def dense() -> None:
        """Computes the IoU of every decoded box with every label of its image."""
        maps = [output.fold(CLASSES) for output in outputs]
        boxes = decode_maps(maps, anchors.per_level, STRIDES)[..., :4]
        real = match(labels, anchors)
        (box_iou(boxes[:, :, None], real.boxes.reshape(BATCH, 1, LABELS, 4)) > 0.7).any(dim=2)

    times = alternate(
        {
            "ours, forward": forward,
            "ours, forward and backward": lambda: forward().backward(),  # type: ignore[no-untyped-call]
            "dense leave-out rule alone": dense,
        },
        repeats=7,
    )
    if options.json:
        print(json.dumps(times, indent=1))
        return 0
    print(f"loss at {SIDE}, batch {BATCH}, {LABELS} labels an image, {torch.get_num_threads()} threads")
    for name, milliseconds in times.items():
        print(f"    {name:32} {milliseconds:8.1f} ms  {milliseconds / times['ours, forward']:6.2f} x our forward")
    return 0


if __name__ == "__main__":
    cli.run(main)
