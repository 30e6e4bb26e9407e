"""The loss against plain loops on cases made to collide, and the shortcut it takes to find overlapping background."""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.loss_reference import LevelView, left_out, read_labels, reference_loss, write_targets
from train.config import DARKNET_ANCHORS, LossConfig
from train.losses.head_output import HeadOutput
from train.losses.yolo_loss import COMPONENTS, detection_loss, well_overlapping
from train.losses.yolo_targets import AnchorSet, elements_of, level_targets, match
from train.model import decode_maps

STRIDES = (32, 16, 8)
SIZES = ((32, 32), (64, 64), (64, 96), (96, 32))


class Case(NamedTuple):
    outputs: list[HeadOutput]
    labels: Tensor
    classes: int
    guided: bool

    @property
    def anchors(self) -> AnchorSet:
        return AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, self.guided)


def predictions(generator: torch.Generator, size: tuple[int, int], classes: int, guided: bool, batch: int) -> list[HeadOutput]:
    outputs = []
    for stride in STRIDES:
        height, width = size[0] // stride, size[1] // stride
        raw = torch.randn(batch, (4 if guided else 3) * (5 + classes), height, width, generator=generator)
        guide = torch.randn(batch, 8, height, width, generator=generator) * 0.5 if guided else None
        outputs.append(HeadOutput(raw, guide))
    return outputs


def make(seed: int, guided: bool = True, columns: int = 6) -> Case:
    """Few cells and many labels: fresh ones, near copies of earlier ones, ones on or beyond the border, ones where a box is
    predicted, and padding between them. The last image has none."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def integer(end: int) -> int:
        return int(torch.randint(0, end, (), generator=generator))

    height, width = SIZES[integer(len(SIZES))]
    classes = 1 + integer(5)
    outputs = predictions(generator, (height, width), classes, guided, 3)
    anchors = AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, guided)
    boxes = decode_maps([o.fold(classes) for o in outputs], anchors.per_level, STRIDES)[..., :4]
    labels = torch.zeros(3, 14, 6)
    for image in range(2):
        for row in range(14):
            kind = integer(6)
            if kind == 0:
                continue  # padding
            cx, cy, w, h = uniform(0, width), uniform(0, height), math.exp(uniform(1, 5)), math.exp(uniform(1, 5))
            if kind == 1:
                cx = (-uniform(0, 40), 0.0, float(width), width + uniform(0, 40))[integer(4)]
                cy = (0.0, float(height))[integer(2)]
            elif kind == 2:
                cx, cy, w, h = (value * uniform(0.97, 1.03) for value in boxes[image, integer(boxes.shape[1])].tolist())
            elif kind in (3, 4) and labels[image, : row + 1].any():
                near = labels[image, integer(row + 1), 1:5]
                cx, cy, w, h = (near * torch.tensor([1, 1, uniform(0.6, 1.4), uniform(0.6, 1.4)])).tolist()
            if w > 0 and h > 0:
                labels[image, row] = torch.tensor([integer(classes), cx, cy, w, h, uniform(0, 1)])
    return Case(outputs, labels[..., :columns], classes, guided)


def both(case: Case, config: LossConfig) -> tuple[dict[str, Tensor], dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Losses of the project and of the loops, and their pairs of leaves."""
    mine = [HeadOutput(o.raw.clone().requires_grad_(), _leaf(o.guide)) for o in case.outputs]
    loops = [(o.raw.double().requires_grad_(), _leaf(o.guide, torch.float64)) for o in case.outputs]
    got = detection_loss(mine, case.labels, case.anchors, case.classes, config)
    want = reference_loss(
        loops,
        case.labels,
        DARKNET_ANCHORS,
        STRIDES,
        case.classes,
        ignore_iou=config.ignore_iou,
        iou_loss=config.iou_loss,
        label_smoothing=config.label_smoothing,
        ignore_area=config.ignore_area,
    )
    leaves = [(a, b) for output, loop in zip(mine, loops) for a, b in zip(output, loop) if a is not None and b is not None]
    return got, want, leaves


def _leaf(tensor: Optional[Tensor], dtype: torch.dtype = torch.float32) -> Optional[Tensor]:
    return tensor.detach().clone().to(dtype).requires_grad_() if tensor is not None else None


def check(case: Case, config: LossConfig) -> None:
    got, want, leaves = both(case, config)
    assert set(got) == set(want) == {*COMPONENTS, "total"}
    for name, value in want.items():
        assert float(got[name].detach()) == pytest.approx(float(value.detach()), rel=1e-4, abs=1e-6), name
    got["total"].backward()
    want["total"].backward()
    for mine, loop in leaves:
        assert mine.grad is not None  # also where a level has no label: distributed training waits for it
        want_grad = torch.zeros_like(loop) if loop.grad is None else loop.grad
        torch.testing.assert_close(mine.grad.double(), want_grad, rtol=1e-4, atol=1e-5)


def test_an_ignore_area_silences_the_neighboring_levels() -> None:
    """One label of the middle level, 62 x 50 at (100, 60), leaves cells of the other levels out of the objectness loss."""
    anchors = AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, False)
    labels = torch.tensor([[[0, 100.0, 60.0, 62.0, 50.0]]])
    silent = {}
    for area in (None, 0.0, 0.2, 0.5):
        maps = [torch.zeros(1, 3 * 6, 128 // s, 192 // s, requires_grad=True) for s in STRIDES]
        for level in maps:  # boxes too small to overlap anything well
            level.data.view(3, 6, -1)[:, 2:4] = -9
        detection_loss([HeadOutput(m, None) for m in maps], labels, anchors, 1, LossConfig(ignore_area=area))[
            "total"
        ].backward()
        silent[area] = [
            {(int(r), int(c)) for a, r, c in (m.grad.view(3, 6, *m.shape[2:])[:, 4] == 0).nonzero()}  # type: ignore[union-attr]
            for m in maps
        ]
    assert silent[None] == [set(), set(), set()]
    assert silent[0.0] == [{(1, 3)}, set(), {(7, 12)}]
    # The inner fifth, 93.8-106.2 by 55-65, holds one cell center of stride 8; the inner half, 84.5-115.5 by 47.5-72.5, nine.
    assert silent[0.2] == [set(), set(), {(7, 12)}]
    assert silent[0.5] == [{(1, 3)}, set(), {(r, c) for r in (6, 7, 8) for c in (11, 12, 13)}]


@pytest.mark.parametrize("seed", range(24))
def test_it_equals_the_loops(seed: int) -> None:
    check(make(seed), LossConfig(label_smoothing=seed % 2 == 0))


@pytest.mark.parametrize("seed", range(100, 108))
def test_it_equals_the_loops_without_guiding(seed: int) -> None:
    check(make(seed, guided=False), LossConfig(label_smoothing=seed % 2 == 0))


@pytest.mark.parametrize(
    ("seed", "columns", "config"),
    [
        (200, 5, LossConfig()),  # no mixing weights
        (201, 6, LossConfig(iou_loss=False)),
        (202, 6, LossConfig(ignore_iou=0.3)),
        (203, 6, LossConfig(ignore_iou=0.9, label_smoothing=False)),
        (204, 6, LossConfig(ignore_area=0.0)),
        (205, 6, LossConfig(ignore_area=0.0)),
        (206, 6, LossConfig(ignore_area=0.2)),
        (207, 6, LossConfig(ignore_area=0.5)),
        (208, 6, LossConfig(ignore_area=0.5)),
    ],
)
def test_it_equals_the_loops_under_every_switch(seed: int, columns: int, config: LossConfig) -> None:
    check(make(seed, columns=columns), config)


def test_the_cases_hold_what_they_are_meant_to() -> None:
    """Every rule that the comparison is about happens somewhere in its cases, many times."""
    seen = dict.fromkeys(["base", "free", "overwritten", "foreign box", "bits", "left out", "by another level", "clamped"], 0)
    for seed in range(1, 24, 2):
        case = make(seed)
        for image in range(2):
            objects = read_labels(case.labels[image])
            for level, output in enumerate(case.outputs):
                assert output.guide is not None
                first = case.anchors.first(level)
                view = LevelView(output.raw[image], output.guide[image], DARKNET_ANCHORS[first : first + 3], STRIDES[level])
                targets = write_targets(view, objects, DARKNET_ANCHORS, first, case.classes, smooth=False)
                owners = list(targets.box.values())
                mine = [o for o in objects if first <= match_one(o.w, o.h) < first + 3]
                seen["base"] += sum(key[0] < 3 for key in targets.chosen)
                seen["free"] += sum(key[0] == 3 for key in targets.chosen)
                seen["overwritten"] += len(mine) - len(targets.chosen)
                seen["foreign box"] += sum(
                    targets.log_size_of[key] != (targets.box[key].w, targets.box[key].h) for key in targets.chosen
                )
                seen["bits"] += sum(sum(row) > 1 for row in targets.classes.values())
                seen["clamped"] += sum(not 0 <= o.cx < view.width * view.stride for o in owners)
                for key in view.elements():
                    if key not in targets.chosen and left_out(view, key, objects, 0.7):
                        seen["left out"] += 1
                        seen["by another level"] += not left_out(view, key, mine, 0.7)
    assert all(count >= 5 for count in seen.values()), seen


def match_one(w: float, h: float) -> int:
    labels = torch.tensor([[[0.0, 1, 1, w, h]]])
    return int(match(labels, AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, True)).anchor)


def silent(size: tuple[int, int], classes: int, guided: bool = True, batch: int = 1) -> list[HeadOutput]:
    """All logits zero."""
    outputs = predictions(torch.Generator(), size, classes, guided, batch)
    return [HeadOutput(o.raw * 0, o.guide * 0 if o.guide is not None else None) for o in outputs]


@pytest.mark.parametrize("smoothing", [True, False])
def test_one_label_worked_out_by_hand(smoothing: bool) -> None:
    """A 32 x 16 label at a quarter of a level-2 cell, all logits zero: every number follows from the definition."""
    case = Case(silent((64, 64), 4), torch.tensor([[[2.0, 18, 42, 32, 16, 0.25]]]), 4, True)
    losses = detection_loss(case.outputs, case.labels, case.anchors, 4, LossConfig(label_smoothing=smoothing))
    # Best of the nine is (33, 23) at level 2, IoU 512 / 759; the anchor-free 32 x 32 has 1/2 and is not chosen.
    shape = 512 / 759
    weight = 2 - 32 * 16 / 64**2
    # Decoded at cell (2, 5) from zero logits: center (20, 44), 33 x 23 against (18, 42), 32 x 16.
    overlap = (34 - 3.5) * (50 - 34)
    iou = overlap / (33 * 23 + 32 * 16 - overlap)
    log2 = math.log(2)
    positions = 2 * log2  # a logit of zero costs log 2 whatever the target
    sides = abs(math.log(32 / 33)) + abs(math.log(16 / 23))
    want = {
        "anchor": (1 - shape**2) + (1 - 0.5**2),
        "iou": weight * (1 - iou**2),
        "offset": weight * (positions + sides),
        "classes": 4 * log2,
        "objectness": (4 * (4 + 16 + 64) - 1 + 0.25) * log2,  # nothing else overlaps the label by more than 0.7
    }
    assert {name: float(losses[name]) for name in COMPONENTS} == pytest.approx(want, rel=1e-5)
    assert float(losses["total"]) == pytest.approx(sum(want.values()), rel=1e-5)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("rows", [0, 3])
def test_images_without_labels_cost_their_whole_background(guided: bool, rows: int) -> None:
    case = Case(silent((32, 64), 2, guided, batch=2), torch.zeros(2, rows, 6), 2, guided)
    losses = detection_loss(case.outputs, case.labels, case.anchors, 2, LossConfig())
    count = (4 if guided else 3) * (2 + 8 + 32)
    assert {name: float(losses[name]) for name in COMPONENTS} == pytest.approx(
        {"anchor": 0, "iou": 0, "offset": 0, "classes": 0, "objectness": count * math.log(2)}
    )


def test_it_is_the_mean_over_images() -> None:
    case, config = make(31), LossConfig()
    whole = detection_loss(case.outputs, case.labels, case.anchors, case.classes, config)
    parts = [
        detection_loss(
            [HeadOutput(o.raw[i : i + 1], o.guide[i : i + 1] if o.guide is not None else None) for o in case.outputs],
            case.labels[i : i + 1],
            case.anchors,
            case.classes,
            config,
        )
        for i in range(3)
    ]
    for name in whole:
        torch.testing.assert_close(whole[name], torch.stack([part[name] for part in parts]).mean())


@pytest.mark.parametrize("seed", range(3))
def test_padding_anywhere_changes_nothing(seed: int) -> None:
    case, config = make(seed), LossConfig(label_smoothing=False)
    padded = torch.zeros(3, 29, 6)
    padded[:, 1::2] = case.labels
    before = detection_loss(case.outputs, case.labels, case.anchors, case.classes, config)
    after = detection_loss(case.outputs, padded, case.anchors, case.classes, config)
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_the_mixing_weight_enters_the_objectness_alone() -> None:
    case, config = make(40), LossConfig()
    light = case.labels.clone()
    light[..., 5] *= 0.5
    full = detection_loss(case.outputs, case.labels, case.anchors, case.classes, config)
    halved = detection_loss(case.outputs, light, case.anchors, case.classes, config)
    assert float(halved["objectness"]) < float(full["objectness"])
    assert all(float(halved[name]) == float(full[name]) for name in ("anchor", "iou", "offset", "classes"))


@pytest.mark.parametrize("part", ["anchor", "iou", "offset"])
def test_guided_anchors_hear_from_three_components(part: str) -> None:
    case = make(50)
    outputs = [HeadOutput(o.raw, _leaf(o.guide)) for o in case.outputs]
    detection_loss(outputs, case.labels, case.anchors, case.classes, LossConfig())[part].backward()
    assert all(o.guide is not None and o.guide.grad is not None and (o.guide.grad != 0).any() for o in outputs)


def test_half_precision_maps_are_measured_in_float32() -> None:
    case = make(3)
    coarse = [HeadOutput(o.raw.bfloat16(), o.guide.bfloat16() if o.guide is not None else None) for o in case.outputs]
    exact = [HeadOutput(o.raw.float(), o.guide.float() if o.guide is not None else None) for o in coarse]
    got = detection_loss(coarse, case.labels, case.anchors, case.classes, LossConfig())
    want = detection_loss(exact, case.labels, case.anchors, case.classes, LossConfig())
    for name in want:
        torch.testing.assert_close(got[name], want[name])


@example(9745, 0.625, (32, 32), 2, False, 6, 7.0)  # a box 6e-5 pixels wide
@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    st.floats(0.1, 0.95),
    st.sampled_from(SIZES),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 12),
    st.floats(0.5, 8),
)
def test_overlapping_background_equals_all_pairs(
    seed: int, threshold: float, size: tuple[int, int], level: int, guided: bool, count: int, spread: float
) -> None:
    """`spread` pushes centers to the edges of their cells and sides far from their anchors."""
    generator = torch.Generator().manual_seed(seed)
    output = predictions(generator, size, 1, guided, 2)[level]
    output.raw.mul_(spread).clamp_(-12, 12)
    anchors = AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, guided)
    sides, stride = anchors.per_level[level], STRIDES[level]
    boxes = decode_maps([output.fold(1)], (sides,), (stride,))[..., :4].double()
    labels = torch.zeros(2, count, 5)
    for image in range(2):
        for row in range(count):
            near = boxes[image, int(torch.randint(0, boxes.shape[1], (), generator=generator))].float()
            moved = near[:2] + near[2:] * torch.randn(2, generator=generator) * 0.15
            labels[image, row, 1:] = torch.cat([moved, near[2:] * torch.exp(torch.randn(2, generator=generator) * 0.15)])
    rows, columns = output.raw.shape[2:]
    sure, possible = set(), set()
    for image in range(2):
        for anchor_index, box in enumerate(boxes[image]):
            pairs = [(dense_iou(box, label[1:].double()), rounding(box, label[1:].double())) for label in labels[image]]
            element = (image, anchor_index // (rows * columns), anchor_index // columns % rows, anchor_index % columns)
            if any(iou > threshold + error for iou, error in pairs):
                sure.add(element)
            if any(iou > threshold - error for iou, error in pairs):
                possible.add(element)
    real, config = match(labels, anchors), LossConfig(ignore_iou=threshold)
    targets = level_targets(real, anchors, level, (rows, columns), threshold, None)
    keys, overlapping = well_overlapping(output, real, targets, torch.tensor(sides), stride, config)
    found = {tuple(element) for element in elements_of(keys[overlapping], len(sides), (rows, columns)).tolist()}
    assert sure <= found <= possible


def rounding(first: Tensor, second: Tensor) -> float:
    """How far float32 may be from the IoU: a center's rounding counts as much more as the sides are smaller than it."""
    largest = max(float(box[:2].abs().max()) for box in (first, second))
    smallest = min(float(box[2:].abs().min()) for box in (first, second))
    return 1e-5 + 4 * float(torch.finfo(torch.float32).eps) * largest / max(smallest, 1e-30)


def dense_iou(first: Tensor, second: Tensor) -> float:
    a, b = first.tolist(), second.tolist()
    sides = [min(a[i] + a[2 + i] / 2, b[i] + b[2 + i] / 2) - max(a[i] - a[2 + i] / 2, b[i] - b[2 + i] / 2) for i in range(2)]
    overlap = max(sides[0], 0) * max(sides[1], 0)
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)
