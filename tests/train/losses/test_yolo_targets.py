"""Assignment of labels to anchors: ties, levels, the anchor-free anchor, shared cells."""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.loss_reference import Label, LevelView, best_base_anchor, float_iou, write_targets
from tests.support.loss_reference import shape_iou as slow_shape_iou
from train.config import DARKNET_ANCHORS
from train.losses.yolo_targets import AnchorSet, Labels, assign, box_iou, level_targets, match, shape_iou

STRIDES = (32, 16, 8)
GUIDED = AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, True)
PLAIN = AnchorSet.from_base(DARKNET_ANCHORS, STRIDES, False)
SIDES = st.floats(0.5, 800, width=32)


def one_image(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float32)


def no_guide(level: int = 2, rows: int = 8, columns: int = 8, batch: int = 1) -> Tensor:
    return torch.zeros(batch, 8, rows, columns)


class Found(NamedTuple):
    """An assignment with every element once, ascending.

    Attributes:
        written: elements that hold a label's box.
        written_by: the label that wrote each.
        chosen: elements that some label chose.
        chosen_by: the last label that chose each.
        chosen_box: the label whose box is written there.
        pairs: every (row of `chosen`, label) that chose it.
    """

    written: Tensor
    written_by: Tensor
    chosen: Tensor
    chosen_by: Tensor
    chosen_box: Tensor
    pairs: Tensor


def find(labels: Labels, anchors: AnchorSet, level: int, size: tuple[int, int], guide: Optional[Tensor]) -> Found:
    targets = level_targets(labels, anchors, level, size, 0.7, None)
    output = torch.zeros(1 + int(labels.image.max()) if len(labels.image) else 1, len(anchors.per_level[level]) * 6, *size)
    made = assign(labels, targets, anchors.strides[level], output, guide)
    winners = torch.nonzero(made.wins)[:, 0]
    winners = winners[made.keys[winners].argsort()]
    rows = (made.winner[:, None] == winners).int().argmax(dim=1) if len(winners) else made.winner
    return Found(
        targets.written,
        targets.written_by,
        made.chosen[winners],
        targets.own[winners],
        made.box[winners],
        torch.stack([rows, targets.own], dim=1),
    )


def test_levels_take_their_anchors_from_the_large_end() -> None:
    assert GUIDED.per_level == (
        ((116, 90), (156, 198), (121, 240), (128, 128)),
        ((30, 61), (62, 45), (42, 119), (64, 64)),
        ((10, 13), (16, 30), (33, 23), (32, 32)),
    )
    assert PLAIN.per_level == tuple(level[:3] for level in GUIDED.per_level)
    assert [GUIDED.first(level) for level in range(3)] == [6, 3, 0]


def test_anchors_must_divide_among_the_levels() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        AnchorSet.from_base(DARKNET_ANCHORS[:8], STRIDES, True)


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=6))
def test_the_best_base_anchor_is_that_of_the_loops(sizes: list[tuple[float, float]]) -> None:
    labels = match(one_image(*((0.0, 5, 5, w, h, 1) for w, h in sizes)), GUIDED)
    for index, (w, h) in enumerate(sizes):
        ious = [slow_shape_iou(*anchor, w, h) for anchor in DARKNET_ANCHORS]
        assert ious[int(labels.anchor[index])] == pytest.approx(max(ious), rel=1e-5)
        assert float(labels.anchor_iou[index]) == pytest.approx(max(ious), rel=1e-5)


@pytest.mark.parametrize(
    ("base", "label", "want"),
    [
        (((8, 16), (16, 8)) + DARKNET_ANCHORS[2:], (16, 16), 0),  # two of the same IoU
        (((16, 8), (8, 16)) + DARKNET_ANCHORS[2:], (16, 16), 0),
        (((4, 4),) * 9, (4, 4), 0),  # all the same
        (((4, 4),) * 3 + ((64, 64),) * 6, (64, 64), 3),
        (((4, 4),) * 6 + ((64, 64),) * 3, (50, 70), 6),
    ],
)
def test_the_first_anchor_wins_a_tie(base: tuple[tuple[float, float], ...], label: tuple[float, float], want: int) -> None:
    found = match(one_image((0, 5, 5, *label)), AnchorSet.from_base(base, STRIDES, True))
    assert int(found.anchor) == want == best_base_anchor(Label(0, 5, 5, *label, 1), base)


def test_padding_goes_and_order_stays() -> None:
    padding = [0.0] * 6
    first, second, third = [0.0, 1, 1, 10, 10, 0.25], [2.0, 9, 1, 8, 8, 0.0], [1.0, 5, 5, 30, 9, 1.0]
    found = match(torch.tensor([[padding, first, padding, second], [padding] * 4, [third, padding, padding, padding]]), GUIDED)
    assert found.image.tolist() == [0, 0, 2]
    assert found.class_ids.tolist() == [0, 2, 1]
    assert found.boxes.tolist() == [first[1:5], second[1:5], third[1:5]]
    assert found.weights.tolist() == [0.25, 0.0, 1.0]


def test_five_columns_weigh_one() -> None:
    assert match(one_image((0, 1, 1, 10, 10), (1, 2, 2, 3, 3)), GUIDED).weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("anchors", [GUIDED, PLAIN], ids=["guided", "plain"])
def test_no_labels(anchors: AnchorSet, rows: int) -> None:
    labels = match(torch.zeros(2, rows, 6), anchors)
    found = find(labels, anchors, 2, (4, 4), no_guide(rows=4, columns=4, batch=2) if anchors.guided else None)
    assert len(labels.image) == len(found.written) == len(found.chosen) == len(found.pairs) == 0


@pytest.mark.parametrize(
    ("center", "cell"),
    [
        ((0, 0), (0, 0)),
        ((7.99, 8.0), (0, 1)),
        ((63.9, 31.9), (7, 3)),
        ((64, 32), (7, 3)),  # on the far border
        ((100, 500), (7, 3)),
        ((-0.1, -50), (0, 0)),
    ],
)
def test_cells_are_kept_inside_the_map(center: tuple[float, float], cell: tuple[int, int]) -> None:
    found = find(match(one_image((0, *center, 10, 13)), PLAIN), PLAIN, 2, (4, 8), None)
    assert found.chosen.tolist() == [[0, 0, cell[1], cell[0]]]


@pytest.mark.parametrize(
    ("size", "stretch", "anchor"),
    [
        ((32, 32), 0.0, 3),  # exactly the anchor-free anchor
        ((33, 23), 0.0, 2),  # exactly a base one
        ((33, 23), math.log(33 / 32), 2),  # the guide moves the anchor-free one, still not better than the base
        ((16, 30), math.log(0.5), 1),
        ((28, 28), 0.0, 3),  # 0.766 against the base's 0.716
    ],
)
def test_the_anchor_free_anchor_is_chosen_where_it_fits_better(size: tuple[float, float], stretch: float, anchor: int) -> None:
    guide = no_guide()
    guide[:, 6:] = stretch
    found = find(match(one_image((0, 20, 20, *size)), GUIDED), GUIDED, 2, (8, 8), guide)
    assert found.chosen.tolist() == [[0, anchor, 2, 2]]


def test_equal_fit_keeps_the_base_anchor() -> None:
    base = ((10, 13), (16, 30), (32, 32)) + DARKNET_ANCHORS[3:]
    anchors = AnchorSet.from_base(base, STRIDES, True)
    found = find(match(one_image((0, 20, 20, 30, 31)), anchors), anchors, 2, (8, 8), no_guide())
    assert found.chosen.tolist() == [[0, 2, 2, 2]]


def test_the_comparison_is_with_the_base_anchor_not_its_guided_form() -> None:
    guide = no_guide()
    guide[:, :6] = -3.0  # the guided forms of the base anchors fit nothing
    guide[:, 6:] = 0.2
    found = find(match(one_image((0, 20, 20, 33, 23)), GUIDED), GUIDED, 2, (8, 8), guide)
    assert found.chosen.tolist() == [[0, 2, 2, 2]]


def test_the_guide_of_the_labels_own_cell_and_image_decides() -> None:
    guide = no_guide(batch=2)
    guide[:, 6:] = 5.0
    guide[1, 6, 3, 1], guide[1, 7, 3, 1] = math.log(25 / 32), math.log(18 / 32)
    label = [0.0, 12, 28, 25, 18]
    found = find(match(torch.tensor([[label], [label]]), GUIDED), GUIDED, 2, (8, 8), guide)
    assert found.chosen.tolist() == [[0, 2, 3, 1], [1, 3, 3, 1]]


def test_an_earlier_labels_anchor_can_hold_a_later_labels_box() -> None:
    """Two labels share a cell and their base anchor; the later one chooses the anchor-free anchor but writes both boxes."""
    labels = match(one_image((0, 20, 20, 33, 23, 1), (1, 21, 21, 28, 28, 1)), GUIDED)
    assert labels.anchor.tolist() == [2, 2]
    found = find(labels, GUIDED, 2, (8, 8), no_guide())
    assert found.chosen.tolist() == [[0, 2, 2, 2], [0, 3, 2, 2]]
    assert found.chosen_by.tolist() == [0, 1]
    assert found.chosen_box.tolist() == [1, 1]
    assert found.written.tolist() == [[0, 2, 2, 2], [0, 3, 2, 2]]
    assert found.written_by.tolist() == [1, 1]


def test_the_last_label_of_a_shared_anchor_wins_and_all_are_remembered() -> None:
    labels = match(one_image((0, 20, 20, 10, 13), (1, 21, 21, 11, 13), (2, 50, 50, 10, 12), (1, 22, 22, 10, 12)), PLAIN)
    found = find(labels, PLAIN, 2, (8, 8), None)
    assert found.chosen.tolist() == [[0, 0, 2, 2], [0, 0, 6, 6]]
    assert found.chosen_by.tolist() == found.chosen_box.tolist() == [3, 2]
    assert sorted(found.pairs.tolist()) == [[0, 0], [0, 1], [0, 3], [1, 2]]


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, 2), st.booleans(), st.sampled_from([(1, 1), (2, 3), (3, 2)]))
def test_assignments_are_what_the_loops_write(seed: int, level: int, guided: bool, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors, stride = (GUIDED if guided else PLAIN), STRIDES[level]
    extent = torch.tensor([size[1], size[0]]) * stride
    rows = torch.zeros(2, 12, 6)
    rows[..., 1:3] = (torch.rand(2, 12, 2, generator=generator) * 1.2 - 0.1) * extent
    rows[..., 3:5] = torch.exp(torch.randn(2, 12, 2, generator=generator) * 0.5) * 4 * stride
    guide = torch.randn(2, 8, *size, generator=generator) * 0.3 if guided else None
    labels = match(rows, anchors)
    found = find(labels, anchors, level, size, guide)

    numbered = [[Label(0, *row[1:5], mix=float(n)) for n, row in enumerate(image)] for image in rows.tolist()]  # mix: who it is
    first = anchors.first(level)
    written, chosen = {}, {}
    for image in range(2):
        raw = torch.zeros((4 if guided else 3) * 6, *size)
        view = LevelView(raw, guide[image] if guide is not None else None, DARKNET_ANCHORS[first : first + 3], stride)
        targets = write_targets(view, numbered[image], DARKNET_ANCHORS, first, 1, False)
        written.update({(image, *key): image * 12 + int(label.mix) for key, label in targets.box.items()})
        chosen.update({(image, *key): image * 12 + int(mix) for key, mix in targets.mix.items()})
    assert dict(zip(map(tuple, found.written.tolist()), found.written_by.tolist())) == written
    assert dict(zip(map(tuple, found.chosen.tolist()), found.chosen_by.tolist())) == chosen
    assert dict(zip(map(tuple, found.chosen.tolist()), found.chosen_box.tolist())) == {key: written[key] for key in chosen}


BOX = st.tuples(st.floats(-50, 700, width=32), st.floats(-50, 700, width=32), SIDES, SIDES)


@given(st.lists(st.tuples(BOX, BOX), min_size=1, max_size=5))
def test_ious_equal_scalar_ones(pairs: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    first, second = torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])
    ious, shapes = box_iou(first.double(), second.double()), shape_iou(first[:, 2:].double(), second[:, 2:].double())
    for index, (a, b) in enumerate(pairs):
        assert float(ious[index]) == pytest.approx(float_iou(a, b), abs=1e-9)
        assert float(shapes[index]) == pytest.approx(slow_shape_iou(*a[2:], *b[2:]), abs=1e-9)
    assert torch.allclose(box_iou(first, first), torch.ones(len(pairs)), atol=1e-3)


def test_ious_of_nothing_are_zero() -> None:
    nothing = torch.zeros(1, 4)
    assert box_iou(nothing, nothing).tolist() == [0.0]
    assert shape_iou(nothing[:, 2:], nothing[:, 2:]).tolist() == [0.0]
