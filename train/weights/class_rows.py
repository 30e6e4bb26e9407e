"""Carries the heads of a detector over to another list of classes, by the names of the classes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from train.checkpoint import Checkpoint
from train.weights.mapping import Published, listed
from train.weights.names import COCO_CLASSES, placeholder_names

log = logging.getLogger(__name__)

_HEADS = re.compile(r"heads\.\d+\.predict\.|head\.classes\.\d+\.(weight|bias)$")
_LISTED = 5


def class_names(found: Checkpoint | Published) -> tuple[str, ...]:
    """Returns the names of a file's classes, COCO's where a published file has 80."""
    if isinstance(found, Checkpoint):
        return found.spec.class_names
    return COCO_CLASSES if found.num_classes == len(COCO_CLASSES) else placeholder_names(found.num_classes)


def with_class_rows(
    weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], old: Sequence[str], new: Sequence[str], lead: int
) -> dict[str, Tensor]:
    """Rearranges the layers that predict classes: rows of a class go to the class of the same name, the others are fresh.

    Args:
        weights: state dict of the file.
        fresh: of the model.
        old: names of the file's classes.
        new: of the model's.
        lead: values of an anchor before its classes, which are kept (YOLOv3: box and objectness).

    Returns:
        The weights; without those layers where no class is known, or the anchors are not as many.
    """
    if tuple(old) == tuple(new):
        return dict(weights)
    known = [name for name in new if name in old]
    kept = {name: value for name, value in weights.items() if not _predicts_classes(name, weights, len(old), lead)}
    if known:
        for name in weights.keys() - kept.keys():
            mapped = _mapped(weights[name], fresh[name], old, new, lead) if name in fresh else None
            if mapped is not None:
                kept[name] = mapped
    left = [name for name in new if name not in old]
    said = f"{len(known)} of {len(new)} classes keep their weights by name" if known else "no class is known by name"
    log.info("heads: %s%s", said, f"; fresh: {listed(left, _LISTED)}" if left else "")
    return kept


def _predicts_classes(name: str, weights: Mapping[str, Tensor], classes: int, lead: int) -> bool:
    """True for the last layer of a head: RetinaNet's tower has others of the same name before it."""
    if not _HEADS.match(name):
        return False
    if lead:
        return True
    numbers = [int(other.split(".")[2]) for other in weights if other.startswith("head.classes.")]
    return int(name.split(".")[2]) == max(numbers)


def _mapped(theirs: Tensor, ours: Tensor, old: Sequence[str], new: Sequence[str], lead: int) -> Tensor | None:
    """Fills a layer's fresh rows with the file's; None where inputs or anchors differ."""
    anchors = len(ours) // (lead + len(new))
    if theirs.shape[1:] != ours.shape[1:] or len(theirs) != anchors * (lead + len(old)):
        return None
    result = ours.detach().cpu().clone().reshape(anchors, lead + len(new), *ours.shape[1:])
    source = theirs.to(result.dtype).reshape(anchors, lead + len(old), *theirs.shape[1:])
    targets = [index for index, name in enumerate(new) if name in old]
    sources = [old.index(new[index]) for index in targets]
    rows = torch.arange(lead).tolist()
    result[:, rows + [lead + index for index in targets]] = source[:, rows + [lead + index for index in sources]]
    return result.reshape(ours.shape)
