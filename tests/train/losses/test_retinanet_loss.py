"""RetinaNet's assignment and loss against plain loops, and on labels that are missing, empty or shared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.losses.retinanet_loss import retina_loss
from train.losses.retinanet_targets import BACKGROUND, IGNORED, anchor_boxes, assign_anchors, decode_boxes, encode

STRIDES = (32, 16, 8)
SIDES = tuple(((2.0 * s, 2.0 * s), (1.5 * s, 3.5 * s)) for s in STRIDES)
SIZE = (48, 64)  # rows and columns of pixels: the coarsest level is rounded up
CLASSES = 3
CPU = torch.device("cpu")

Box = tuple[float, float, float, float]


def slow_iou(first: Sequence[float], second: Sequence[float]) -> float:
    overlaps = [
        max(min(c + s / 2, d + t / 2) - max(c - s / 2, d - t / 2), 0.0)
        for c, s, d, t in ((first[i], first[i + 2], second[i], second[i + 2]) for i in range(2))
    ]
    intersection = overlaps[0] * overlaps[1]
    union = first[2] * first[3] + second[2] * second[3] - intersection
    return intersection / union


def slow_assign(anchors: Sequence[Box], boxes: Sequence[Sequence[float]]) -> list[int]:
    table = [[slow_iou(anchor, box) for box in boxes] for anchor in anchors]
    most = [max(row[k] for row in table) for k in range(len(boxes))]
    matched_labels = []
    for row in table:
        wanting = [k for k in range(len(boxes)) if row[k] == most[k] > 0]
        best = max(range(len(boxes)), key=row.__getitem__, default=-1)
        if wanting:
            matched_labels.append(max(wanting, key=row.__getitem__))
        elif best < 0 or row[best] < 0.4:
            matched_labels.append(BACKGROUND)
        else:
            matched_labels.append(best if row[best] >= 0.5 else IGNORED)
    return matched_labels


def slow_loss(maps: Sequence[Tensor], labels: Tensor) -> tuple[float, float]:
    """(classes, boxes) anchor by anchor, in Python's own floats."""
    classes = boxes = 0.0
    positives = 0
    for image, rows in enumerate(labels.tolist()):
        real = [row for row in rows if any(row)]
        cells = [
            (level, a, row, column)
            for level, raw in enumerate(maps)
            for a in range(len(SIDES[level]))
            for row in range(raw.shape[2])
            for column in range(raw.shape[3])
        ]
        anchors = [((c + 0.5) * STRIDES[v], (r + 0.5) * STRIDES[v], *SIDES[v][a]) for v, a, r, c in cells]
        for (level, a, row, column), anchor, match in zip(cells, anchors, slow_assign(anchors, [row[1:5] for row in real])):
            said = maps[level][image, a * (4 + CLASSES) : (a + 1) * (4 + CLASSES), row, column].tolist()
            if match == IGNORED:
                continue
            label = real[match] if match >= 0 else None
            weight = label[5] if label else 1.0
            for index, logit in enumerate(said[4:]):
                p = 1 / (1 + math.exp(-logit))
                if label and index == label[0]:
                    classes += weight * 0.25 * (1 - p) ** 2 * -math.log(p)
                else:
                    classes += weight * 0.75 * p**2 * -math.log(1 - p)
            if label:
                positives += 1
                wanted = [(label[1 + i] - anchor[i]) / anchor[2 + i] for i in range(2)]
                wanted += [math.log(label[3 + i] / anchor[2 + i]) for i in range(2)]
                for distance in (abs(t - w) for t, w in zip(said, wanted)):
                    boxes += distance**2 / 2 * 9 if distance < 1 / 9 else distance - 1 / 18
    return classes / max(positives, 1), boxes / max(positives, 1)


def random_maps(batch: int, generator: torch.Generator) -> list[Tensor]:
    sizes = [[math.ceil(side / stride) for side in SIZE] for stride in STRIDES]
    return [torch.randn(batch, 2 * (4 + CLASSES), *size, generator=generator) for size in sizes]


def random_labels(seed: int) -> Tensor:
    """Three images: five labels, two near copies of each other among them; one label behind padding; none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(3, 5, 6, generator=generator)
    labels[..., 0] = torch.randint(0, CLASSES, (3, 5), generator=generator)
    labels[..., 1:3] *= torch.tensor([SIZE[1], SIZE[0]])
    labels[..., 3:5] = 4 * 16 ** labels[..., 3:5]
    labels[0, 3, 1:5] = labels[0, 1, 1:5] * 1.03
    labels[1, [0, 1, 3, 4]] = 0
    labels[2] = 0
    return labels


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_loops(seed: int) -> None:
    maps, labels = random_maps(3, torch.Generator().manual_seed(seed)), random_labels(seed)
    losses = retina_loss(maps, labels, SIDES, STRIDES)
    classes, boxes = slow_loss(maps, labels)
    assert float(losses["classes"]) == pytest.approx(classes, rel=1e-5)
    assert float(losses["boxes"]) == pytest.approx(boxes, rel=1e-5)
    assert float(losses["total"]) == pytest.approx(classes + boxes, rel=1e-5)


def test_the_cases_hold_every_kind_of_anchor() -> None:
    """The compared cases hold positives with an IoU above and below 0.5, background, and ignored anchors."""
    anchors = all_anchors()
    seen = set()
    for seed in range(12):
        for rows in random_labels(seed):
            boxes = rows[rows.any(dim=1)][:, 1:5]
            matched_labels = assign_anchors(anchors, boxes)
            for anchor, match in zip(anchors.tolist(), matched_labels.tolist()):
                seen.add(match if match < 0 else "well" if slow_iou(anchor, boxes[match].tolist()) >= 0.5 else "best")
    assert seen == {BACKGROUND, IGNORED, "well", "best"}


def test_labels_without_mixing_weight_weigh_one() -> None:
    maps, labels = random_maps(3, torch.Generator().manual_seed(0)), random_labels(0)
    labels[..., 5] = (labels[..., 3] > 0).float()
    with_weight, without = (retina_loss(maps, given, SIDES, STRIDES) for given in (labels, labels[..., :5]))
    assert with_weight == without


@pytest.mark.parametrize("rows", [0, 2])
def test_without_labels_all_is_background(rows: int) -> None:
    maps = [raw.requires_grad_() for raw in random_maps(2, torch.Generator().manual_seed(1))]
    labels = torch.zeros(2, rows, 6)
    losses = retina_loss(maps, labels, SIDES, STRIDES)
    assert float(losses["boxes"].detach()) == 0
    assert float(losses["classes"].detach()) == pytest.approx(slow_loss([m.detach() for m in maps], labels)[0], rel=1e-5)
    losses["total"].backward()
    for raw in maps:
        grad = raw.grad.unflatten(1, (2, -1))
        assert (grad[:, :, :4] == 0).all() and (grad[:, :, 4:] > 0).all()


def test_extreme_logits_stay_finite() -> None:
    for value in (1e4, -1e4):
        maps = [torch.full_like(raw, value).requires_grad_() for raw in random_maps(3, torch.Generator())]
        total = retina_loss(maps, random_labels(2), SIDES, STRIDES)["total"]
        total.backward()
        assert torch.isfinite(total) and all(torch.isfinite(raw.grad).all() for raw in maps)


def all_anchors() -> Tensor:
    sizes = [(math.ceil(SIZE[0] / s), math.ceil(SIZE[1] / s)) for s in STRIDES]
    return torch.cat([anchor_boxes(sides, stride, size, CPU) for sides, stride, size in zip(SIDES, STRIDES, sizes)])


def test_anchors_stand_on_cell_centers_in_channel_order() -> None:
    anchors = anchor_boxes(((10, 20), (30, 40)), 16, (2, 3), CPU)
    want = [((c + 0.5) * 16, (r + 0.5) * 16, w, h) for w, h in ((10, 20), (30, 40)) for r in range(2) for c in range(3)]
    assert [tuple(row) for row in anchors.tolist()] == want


def test_decoding_undoes_encoding() -> None:
    anchors, boxes = all_anchors()[:5], random_labels(3)[0, :, 1:5]
    torch.testing.assert_close(decode_boxes(encode(boxes, anchors), anchors), boxes)
    # One anchor to the right, half an anchor up, twice as wide.
    offsets = torch.tensor([1.0, -0.5, math.log(2), 0])
    assert decode_boxes(offsets, torch.tensor([[40.0, 50, 10, 20]])).tolist()[0] == pytest.approx([50, 40, 20, 20])


# Anchors of 16 x 16 on the four cells of a 32 x 32 image: centers (8, 8), (24, 8), (8, 24), (24, 24).
FOUR = anchor_boxes(((16, 16),), 16, (2, 2), CPU)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], [-1, -1, -1, -1]),
        ([(8, 8, 16, 16)], [0, -1, -1, -1]),
        # the IoU of a smaller box inside is its share of the area: 0.56 is well, 0.43 in between, 0.1 background ...
        ([(8, 8, 16, 16), (24, 8, 12, 12), (8, 24, 10.5, 10.5), (24, 24, 5, 5)], [0, 1, 2, 3]),  # ... but each one's best
        ([(16, 16, 8, 8)], [0, 0, 0, 0]),  # a tie: all of them
        ([(10, 8, 16, 16), (8, 8, 16, 16)], [1, -1, -1, -1]),  # both want the first; the better overlap has it
        ([(8, 8, 16, 16), (8, 8, 16, 16)], [0, -1, -1, -1]),
        # The small one's best anchor is the first, which overlaps the large one by more than half.
        ([(8, 8, 18, 18), (6, 6, 4, 4), (24, 8, 16, 16)], [0, 2, -1, -1]),
        ([(12.5, 8, 25, 16)], [0, -1, -1, -1]),  # 0.64 of the first; 0.25 of the second
        ([(8, 8, 0, 16)], [-1, -1, -1, -1]),
        ([(90, 90, 16, 16)], [-1, -1, -1, -1]),  # outside
    ],
)
def test_by_hand(boxes: list[Box], expected: list[int]) -> None:
    assert assign_anchors(FOUR, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)).tolist() == expected


def test_between_the_thresholds_an_anchor_is_ignored() -> None:
    label = torch.tensor([[16.0, 8, 21, 16]])  # 13.5 of the first and of the second: 216 / (256 + 336 - 216) = 0.574
    assert assign_anchors(FOUR, label).tolist() == [0, 0, -1, -1]
    label = torch.tensor([[15.0, 8, 28, 16]])  # the first: 15 / 29 = 0.517; the second: 13 / 31 = 0.419
    assert assign_anchors(FOUR, label).tolist() == [0, IGNORED, -1, -1]


SIDE = st.floats(1, 60)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(1, 63), st.floats(1, 47), SIDE, SIDE), min_size=1, max_size=6))
def test_every_label_gets_an_anchor_or_loses_its_best_to_another(boxes: list[Box]) -> None:
    anchors, labels = all_anchors(), torch.tensor(boxes)
    matched_labels = assign_anchors(anchors, labels)
    for k, box in enumerate(labels.tolist()):
        if (matched_labels == k).any():
            continue
        overlaps = [slow_iou(anchor, box) for anchor in anchors.tolist()]
        taken_by = int(matched_labels[max(range(len(anchors)), key=overlaps.__getitem__)])
        assert taken_by >= 0 and taken_by != k
