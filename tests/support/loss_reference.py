"""The training loss as plain loops over images, labels, cells and anchors: slow, and written to be read beside its description.

Only what a gradient flows through is a torch scalar (double precision); every decision is made on Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

Box = tuple[float, float, float, float]
Key = tuple[int, int, int]  # (anchor, row, column)


@dataclass(frozen=True)
class Label:
    """One object, in input pixels."""

    class_id: int
    cx: float
    cy: float
    w: float
    h: float
    mix: float


@dataclass
class Targets:
    """What the labels wrote on one level of one image. A later write to a key replaces an earlier one."""

    box: dict[Key, Label] = field(default_factory=dict)  # at index 3 and at the best base anchor
    chosen: set[Key] = field(default_factory=set)  # the rest is written at the chosen anchor alone
    mix: dict[Key, float] = field(default_factory=dict)
    scale: dict[Key, float] = field(default_factory=dict)
    fraction: dict[Key, tuple[float, float]] = field(default_factory=dict)
    log_size_of: dict[Key, tuple[float, float]] = field(default_factory=dict)
    classes: dict[Key, list[float]] = field(default_factory=dict)


class LevelView:
    """One image's raw map and guide on one level, as scalars."""

    def __init__(self, raw: Tensor, guide: Optional[Tensor], base: Sequence[tuple[float, float]], stride: int) -> None:
        channels, self.height, self.width = raw.shape
        self.stride = stride
        self.base = [*base, (4.0 * stride, 4.0 * stride)] if guide is not None else list(base)
        self.count = len(self.base)
        self.per_anchor = channels // self.count
        # unbind: one backward node for all scalars
        self._raw = raw.double().reshape(-1).unbind()
        self._guide = guide.double().reshape(-1).unbind() if guide is not None else None

    def logit(self, key: Key, channel: int) -> Tensor:
        """Channel of (tx, ty, tw, th, to, classes...) at a key."""
        anchor, row, column = key
        return self._raw[((anchor * self.per_anchor + channel) * self.height + row) * self.width + column]

    def anchor_sides(self, key: Key) -> tuple[Tensor, Tensor]:
        """Width and height of the guided anchor (of the base anchor without guiding)."""
        anchor, row, column = key
        sides = []
        for axis in range(2):
            side = torch.tensor(float(self.base[anchor][axis]), dtype=torch.float64)
            if self._guide is not None:
                side = side * torch.exp(self._guide[((anchor * 2 + axis) * self.height + row) * self.width + column])
            sides.append(side)
        return sides[0], sides[1]

    def decoded(self, key: Key) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(cx, cy, w, h) in input pixels."""
        _, row, column = key
        aw, ah = self.anchor_sides(key)
        x = (torch.sigmoid(self.logit(key, 0)) + column) * self.stride
        y = (torch.sigmoid(self.logit(key, 1)) + row) * self.stride
        return x, y, aw * torch.exp(self.logit(key, 2)), ah * torch.exp(self.logit(key, 3))

    def elements(self) -> list[Key]:
        return [(a, r, c) for a in range(self.count) for r in range(self.height) for c in range(self.width)]


def reference_loss(
    outputs: Sequence[tuple[Tensor, Optional[Tensor]]],
    labels: Tensor,
    base: Sequence[tuple[float, float]],
    strides: Sequence[int],
    num_classes: int,
    ignore_iou: float = 0.7,
    iou_loss: bool = True,
    label_smoothing: bool = True,
    ignore_area: Optional[float] = None,
) -> dict[str, Tensor]:
    """Every component and their total, double precision.

    Args:
        outputs: per level (coarsest first) raw `[N, A * (5 + C), H, W]` and guide `[N, A * 2, H, W]` or None.
        labels: `[N, M, 5 or 6]`. base: all anchors, small to large.
    """
    sums = {name: torch.zeros((), dtype=torch.float64) for name in ("anchor", "iou", "offset", "objectness", "classes")}
    batch = labels.shape[0]
    for image in range(batch):
        objects = read_labels(labels[image])
        for level, (raw, guide) in enumerate(outputs):
            first = (len(strides) - 1 - level) * 3
            view = LevelView(raw[image], guide[image] if guide is not None else None, base[first : first + 3], strides[level])
            targets = write_targets(view, objects, base, first, num_classes, label_smoothing)
            near = [label for label in objects if abs(len(strides) - 1 - best_base_anchor(label, base) // 3 - level) == 1]
            ignored = set() if ignore_area is None else ignored_cells(view, near, ignore_area)
            for name, value in level_loss(view, targets, objects, num_classes, ignore_iou, iou_loss, ignored).items():
                sums[name] = sums[name] + value / batch
    sums["total"] = torch.stack(list(sums.values())).sum()
    return sums


def read_labels(rows: Tensor) -> list[Label]:
    """The rows that are not padding, in order."""
    objects = []
    for row in rows.tolist():
        if any(value != 0 for value in row):
            mix = row[5] if len(row) == 6 else 1.0
            objects.append(Label(int(row[0]), row[1], row[2], row[3], row[4], mix))
    return objects


def shape_iou(w1: float, h1: float, w2: float, h2: float) -> float:
    """IoU of two boxes at the origin."""
    overlap = min(w1, w2) * min(h1, h2)
    return overlap / (w1 * h1 + w2 * h2 - overlap + 1e-16)


def best_base_anchor(label: Label, base: Sequence[tuple[float, float]]) -> int:
    """Of all base anchors the one of the highest shape IoU, the first on a tie."""
    best, best_iou = 0, -1.0
    for index, (w, h) in enumerate(base):
        iou = shape_iou(w, h, label.w, label.h)
        if iou > best_iou:
            best, best_iou = index, iou
    return best


def write_targets(
    view: LevelView, objects: Sequence[Label], base: Sequence[tuple[float, float]], first: int, num_classes: int, smooth: bool
) -> Targets:
    """Let the labels of this level write, in their order."""
    targets = Targets()
    for label in objects:
        best = best_base_anchor(label, base)
        if not first <= best < first + 3:
            continue
        anchor = best - first
        column = min(max(math.floor(label.cx / view.stride), 0), view.width - 1)
        row = min(max(math.floor(label.cy / view.stride), 0), view.height - 1)
        chosen = anchor
        if view.count == 4:
            free_w, free_h = (float(side.detach()) for side in view.anchor_sides((3, row, column)))
            if shape_iou(free_w, free_h, label.w, label.h) > shape_iou(*base[best], label.w, label.h):
                chosen = 3
            targets.box[3, row, column] = label
        targets.box[anchor, row, column] = label

        key = (chosen, row, column)
        targets.chosen.add(key)
        targets.mix[key] = label.mix
        targets.scale[key] = 2 - label.w * label.h / (view.height * view.stride * view.width * view.stride)
        targets.fraction[key] = (label.cx / view.stride - column, label.cy / view.stride - row)
        targets.log_size_of[key] = (label.w, label.h)
        if smooth:
            targets.classes[key] = [1 / num_classes] * num_classes
            targets.classes[key][label.class_id] = 1 - 1 / num_classes
        else:
            targets.classes.setdefault(key, [0.0] * num_classes)[label.class_id] = 1.0
    return targets


def ignored_cells(view: LevelView, near: Sequence[Label], share: float) -> set[tuple[int, int]]:
    """Cells (row, column) in the ignore area of labels that belong to the levels next to this one."""
    cells = set()
    for label in near:
        for row in range(view.height):
            for column in range(view.width):
                x, y = (column + 0.5) * view.stride, (row + 0.5) * view.stride
                if share == 0:
                    holds_x = math.floor(min(max(label.cx / view.stride, 0), view.width - 1)) == column
                    holds_y = math.floor(min(max(label.cy / view.stride, 0), view.height - 1)) == row
                    inside = holds_x and holds_y
                else:
                    inside = abs(x - label.cx) <= share * label.w / 2 and abs(y - label.cy) <= share * label.h / 2
                if inside:
                    cells.add((row, column))
    return cells


def level_loss(
    view: LevelView,
    targets: Targets,
    objects: Sequence[Label],
    num_classes: int,
    ignore_iou: float,
    iou_loss: bool,
    ignored: set[tuple[int, int]],
) -> dict[str, Tensor]:
    """The components of one image on one level, not yet divided by the batch size."""
    zero = torch.zeros((), dtype=torch.float64)
    anchor, iou, offset, objectness, classes = zero, zero, zero, zero, zero

    if view.count == 4:
        for key, label in targets.box.items():
            w, h = view.anchor_sides(key)
            overlap = torch.minimum(w, w * 0 + label.w) * torch.minimum(h, h * 0 + label.h)
            anchor = anchor + 1 - (overlap / (w * h + label.w * label.h - overlap + 1e-16)) ** 2

    for key in targets.chosen:
        scale = targets.scale[key]
        if iou_loss:
            label = targets.box[key]
            iou = iou + scale * (1 - torch_iou(view.decoded(key), (label.cx, label.cy, label.w, label.h)) ** 2)
        for axis in range(2):
            offset = offset + scale * bce(view.logit(key, axis), targets.fraction[key][axis])
            wanted = torch.log(targets.log_size_of[key][axis] / view.anchor_sides(key)[axis] + 1e-12)
            offset = offset + scale * (view.logit(key, 2 + axis) - wanted).abs()
        for class_id in range(num_classes):
            classes = classes + bce(view.logit(key, 5 + class_id), targets.classes[key][class_id])

    for key in view.elements():
        if key in targets.chosen:
            objectness = objectness + targets.mix[key] * bce(view.logit(key, 4), 1.0)
        elif key[1:] not in ignored and not left_out(view, key, objects, ignore_iou):
            objectness = objectness + bce(view.logit(key, 4), 0.0)
    return {"anchor": anchor, "iou": iou, "offset": offset, "objectness": objectness, "classes": classes}


def left_out(view: LevelView, key: Key, objects: Sequence[Label], ignore_iou: float) -> bool:
    """Whether the box decoded at a key overlaps any label of the image, whatever its level, by more than the threshold."""
    if not objects:
        return False
    with torch.no_grad():
        x, y, w, h = (float(value) for value in view.decoded(key))
    return any(float_iou((x, y, w, h), (label.cx, label.cy, label.w, label.h)) > ignore_iou for label in objects)


def float_iou(first: Box, second: Box) -> float:
    """IoU of two (cx, cy, w, h) boxes."""
    sides = []
    for axis in range(2):
        low = max(box[axis] - box[2 + axis] / 2 for box in (first, second))
        high = min(box[axis] + box[2 + axis] / 2 for box in (first, second))
        sides.append(max(high - low, 0.0))
    overlap = sides[0] * sides[1]
    return overlap / (first[2] * first[3] + second[2] * second[3] - overlap + 1e-16)


def torch_iou(first: Sequence[Tensor], second: Box) -> Tensor:
    """`float_iou`, differentiable in the first box."""
    sides = []
    for axis in range(2):
        low = (first[axis] - first[2 + axis] / 2).clamp(min=second[axis] - second[2 + axis] / 2)
        high = (first[axis] + first[2 + axis] / 2).clamp(max=second[axis] + second[2 + axis] / 2)
        sides.append((high - low).clamp(min=0))
    overlap = sides[0] * sides[1]
    return overlap / (first[2] * first[3] + second[2] * second[3] - overlap + 1e-16)


def bce(logit: Tensor, target: float) -> Tensor:
    """Binary cross entropy of a logit."""
    return functional.softplus(logit) - logit * target
