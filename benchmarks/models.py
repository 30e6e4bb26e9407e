"""Makes random models behave like trained ones, for measuring and testing without weights."""

from __future__ import annotations

import torch

from train.model import DetectorModel, RetinaNet, YOLOv3


@torch.no_grad()
def settle(model: DetectorModel, side: int = 128) -> DetectorModel:
    """Gives a fresh model batch-norm statistics and logits as after training, in place; returns it in evaluation mode.

    In a fresh deep network activations explode, which magnifies rounding, and heads give logits near zero, which hides it.
    """
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # average over all batches seen
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)
    _scale_heads(model)
    model.train()
    for _ in range(3):
        model.maps(torch.randn(4, 3, side, side))
    for norm in norms:
        assert norm.running_var is not None
        norm.running_var.clamp_(min=0.05)  # a channel that happens to be dead would magnify rounding by 300
    return model.eval()


def _scale_heads(model: DetectorModel) -> None:
    """Scales up the heads' last convolutions, which start near zero, and evens out ASFF's weights, which prefer one level."""
    for fusion in model.fusions():
        if fusion.kind == "asff":
            fusion.weights.weigh.weight.mul_(0.25)
    if isinstance(model, YOLOv3):
        for head in model.heads:
            for conv in filter(None, [head.guide, head.predict, head.adapt.offsets if head.adapt else None]):
                conv.weight.normal_(0, conv.weight[0].numel() ** -0.5)  # logits and offsets of about 1
    elif isinstance(model, RetinaNet):
        for tower in (model.head.classes, model.head.boxes):
            tower[-1].weight.normal_(0, 0.03)
            tower[-1].bias.zero_()
