"""decode: against a readable loop over every cell, and on damaged or extreme maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ModelError
from runtime.ops.decode import Candidates, decode
from runtime.spec import CANDIDATES_NAME, ModelSpec

Row = tuple[list[float], float, int]
MakeSpec = Callable[..., ModelSpec]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def slow_decode(maps: Sequence[np.ndarray], spec: ModelSpec, threshold: float) -> list[Row]:
    """Cell by cell in float64, in the order level, anchor, row, column."""
    found: list[Row] = []
    for level, raw in enumerate(maps):
        stride, behind = spec.strides[level], 5 if spec.head == "yolo" else 4
        block = behind + spec.num_classes
        for a, (anchor_width, anchor_height) in enumerate(spec.anchors[level]):
            for row in range(raw.shape[1]):
                for column in range(raw.shape[2]):
                    cell = raw[a * block : (a + 1) * block, row, column].tolist()
                    (tx, ty, tw, th), classes = cell[:4], cell[behind:]
                    best = max(range(spec.num_classes), key=classes.__getitem__)
                    score = sigmoid(classes[best]) * (sigmoid(cell[4]) if spec.head == "yolo" else 1)
                    if score < threshold:
                        continue
                    if spec.head == "yolo":
                        x, y = (sigmoid(tx) + column) * stride, (sigmoid(ty) + row) * stride
                    else:
                        x, y = (column + 0.5) * stride + tx * anchor_width, (row + 0.5) * stride + ty * anchor_height
                    w, h = anchor_width * math.exp(tw), anchor_height * math.exp(th)
                    found.append(([x - w / 2, y - h / 2, x + w / 2, y + h / 2], score, best))
    return found


def assert_same(found: Candidates, expected: list[Row]) -> None:
    assert found.boxes.dtype == np.float32 and found.boxes.shape == (len(expected), 4)
    assert found.scores.dtype == np.float32 and found.class_ids.dtype == np.int64
    assert found.class_ids.tolist() == [row[2] for row in expected]
    np.testing.assert_allclose(found.scores, [row[1] for row in expected], rtol=5e-7, atol=0)
    boxes = np.array([row[0] for row in expected]).reshape(-1, 4)
    np.testing.assert_allclose(found.boxes, boxes, rtol=1e-6, atol=1e-6 * max(np.abs(boxes).max(initial=0), 1))


def assert_sane(found: Candidates) -> None:
    assert np.isfinite(found.boxes).all()
    assert (found.boxes[:, :2] <= found.boxes[:, 2:]).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    area = (found.boxes[:, 2] - found.boxes[:, 0]) * (found.boxes[:, 3] - found.boxes[:, 1])
    assert np.isfinite(area).all()


def random_maps(spec: ModelSpec, seed: int, spread: float = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [spec.map_shape(level) for level in range(len(spec.strides))]
    return [rng.normal(0, spread, shape).astype(np.float32) for shape in shapes]


def one_cell(spec: ModelSpec, level: int, anchor: int, row: int, column: int, logits: Sequence[float]) -> list[np.ndarray]:
    """Maps that are silent but for one cell."""
    maps = [np.full(spec.map_shape(k), -100, np.float32) for k in range(len(spec.strides))]
    block = len(logits)
    maps[level][anchor * block : (anchor + 1) * block, row, column] = logits
    return maps


@pytest.mark.parametrize("threshold", [0, 0.01, 0.25, 0.6, 1])
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
@pytest.mark.parametrize(("anchors", "classes"), [(4, 2), (3, 1), (3, 80), (4, 80), (1, 1)])
def test_equals_the_loop(anchors: int, classes: int, size: tuple[int, int], threshold: float, make_spec: MakeSpec) -> None:
    rng = np.random.default_rng(anchors)
    sides = rng.uniform(5, 60, (3, anchors, 2)).tolist()
    spec = make_spec(
        class_names=tuple(map(str, range(classes))),
        input_size=size,
        anchors=tuple(tuple((w, h) for w, h in level) for level in sides),
    )
    maps = random_maps(spec, classes)
    expected = slow_decode(maps, spec, threshold)
    assert (len(expected) > 0) == (threshold < 1)
    assert_same(decode(maps, spec, threshold), expected)


def retinanet(make_spec: MakeSpec, **changes: object) -> ModelSpec:
    """Two classes, two anchors a level, strides 128 to 8."""
    strides = (128, 64, 32, 16, 8)
    anchors = tuple(((2.0 * stride, 3.0 * stride), (4.0 * stride, 1.5 * stride)) for stride in strides)
    return make_spec(**{"head": "retinanet", "strides": strides, "anchors": anchors, **changes})


@pytest.mark.parametrize("threshold", [0, 0.01, 0.25, 0.6, 1])
@pytest.mark.parametrize("size", [(64, 64), (160, 96)])
@pytest.mark.parametrize("classes", [1, 2, 80])
def test_retinanet_equals_the_loop(classes: int, size: tuple[int, int], threshold: float, make_spec: MakeSpec) -> None:
    spec = retinanet(make_spec, class_names=tuple(map(str, range(classes))), input_size=size)
    maps = random_maps(spec, classes, spread=2)
    expected = slow_decode(maps, spec, threshold)
    assert (len(expected) > 0) == (threshold < 1)
    assert_same(decode(maps, spec, threshold), expected)


def test_retinanet_by_hand(make_spec: MakeSpec) -> None:
    # level 3: stride 16, anchor 1 is 64 x 24, row 1, column 2: center (2.5 * 16 + 64 / 4, 1.5 * 16 - 24 / 2)
    spec = retinanet(make_spec)
    found = decode(one_cell(spec, 3, 1, 1, 2, [0.25, -0.5, math.log(0.5), 0, -50, 0]), spec, 0.1)
    np.testing.assert_allclose(found.boxes, [[40, 0, 72, 24]], rtol=1e-6, atol=1e-5)
    assert found.scores.tolist() == [0.5] and found.class_ids.tolist() == [1] and found.levels.tolist() == [3]


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([np.inf, -np.inf]), min_size=6, max_size=6))
def test_retinanets_extreme_logits_stay_finite(make_spec: MakeSpec, logits: list[float]) -> None:
    spec = retinanet(make_spec)
    assert_sane(decode(one_cell(spec, 4, 1, 1, 4, logits), spec, 0))


@settings(max_examples=300)
@given(st.floats(-80, 20, width=32), st.integers(-3, 3))
def test_retinanets_shortcut_loses_nothing(make_spec: MakeSpec, logit: float, steps: int) -> None:
    spec = make_spec(input_size=(32, 32), strides=(32,), anchors=(((8.0, 8.0),),), head="retinanet")
    maps = [np.array([0, 0, 0, 0, logit, -200], np.float32).reshape(6, 1, 1)]
    score = decode(maps, spec, 0).scores[0]
    threshold = np.float32(score)
    for _ in range(abs(steps)):
        threshold = np.nextafter(threshold, np.float32(np.sign(steps)))
    threshold = np.clip(threshold, np.float32(0), np.float32(1))
    assert len(decode(maps, spec, float(threshold)).scores) == (score >= threshold)


@pytest.mark.parametrize("channel", range(6))
def test_nan_is_a_damaged_retinanet(channel: int, make_spec: MakeSpec) -> None:
    logits = [0.0, 0, 0, 0, 50, -50]
    logits[channel] = np.nan
    spec = retinanet(make_spec)
    with pytest.raises(ModelError, match="output p6 holds NaN"):
        decode(one_cell(spec, 1, 1, 0, 0, logits), spec, 0.01)


def test_levels_may_differ_in_anchors(make_spec: MakeSpec) -> None:
    spec = make_spec(anchors=(((9.0, 8.0),), ((9.0, 8.0), (3.0, 5.0)), ((2.0, 7.0),) * 4))
    maps = random_maps(spec, 5)
    assert_same(decode(maps, spec, 0.1), slow_decode(maps, spec, 0.1))


def test_nothing_found(make_spec: MakeSpec) -> None:
    spec = make_spec()
    assert_same(decode(one_cell(spec, 0, 0, 0, 0, [-100] * 7), spec, 0.01), [])


def test_one_object_by_hand(make_spec: MakeSpec) -> None:
    # level 1: stride 16, anchor 2 is 16 x 12, row 1, column 2: center ((0.5 + 2) * 16, (0.5 + 1) * 16)
    found = decode(one_cell(make_spec(), 1, 2, 1, 2, [0, 0, 0, math.log(2), 50, -50, 0]), make_spec(), 0.1)
    np.testing.assert_allclose(found.boxes, [[32, 12, 48, 36]], rtol=1e-6)
    assert found.scores.tolist() == [0.5] and found.class_ids.tolist() == [1]


def test_a_tie_between_classes_goes_to_the_first(make_spec: MakeSpec) -> None:
    found = decode(one_cell(make_spec(), 0, 0, 0, 0, [0, 0, 0, 0, 50, 2, 2]), make_spec(), 0.1)
    assert found.class_ids.tolist() == [0]


@pytest.mark.parametrize(
    ("objectness", "best", "threshold", "kept"),
    [
        # the score is exactly the threshold: kept
        (50, 0, 0.5, True),
        (0, 50, 0.5, True),
        (0, 0, 0.25, True),
        (50, 50, 1, True),
        (-200, 50, 0, True),
        (-np.inf, -np.inf, 0, True),
        # the next float32 above it: not
        (50, 0, float(np.nextafter(np.float32(0.5), np.float32(1))), False),
        (0, 50, float(np.nextafter(np.float32(0.5), np.float32(1))), False),
        (0, 0, float(np.nextafter(np.float32(0.25), np.float32(1))), False),
        (15.9, 50, 1, False),
        (-200, 50, 1e-30, False),
    ],
)
def test_threshold_boundary(objectness: float, best: float, threshold: float, kept: bool, make_spec: MakeSpec) -> None:
    spec = make_spec()
    maps = [raw[:7, :1, :1] for raw in one_cell(spec, 0, 0, 0, 0, [0, 0, 0, 0, objectness, best, -300])]
    spec = make_spec(input_size=(32, 32), strides=(32,), anchors=(((8.0, 8.0),),))
    assert len(decode(maps[:1], spec, threshold).scores) == kept


@settings(max_examples=300)
@given(st.floats(-80, 20, width=32), st.integers(-3, 3))
def test_the_objectness_shortcut_loses_nothing(make_spec: MakeSpec, objectness: float, steps: int) -> None:
    """A threshold of just about the score that float32 gives must decide by that score alone."""
    spec = make_spec(input_size=(32, 32), strides=(32,), anchors=(((8.0, 8.0),),))
    maps = [np.array([0, 0, 0, 0, objectness, 200, -200], np.float32).reshape(7, 1, 1)]
    score = decode(maps, spec, 0).scores[0]
    threshold = np.float32(score)
    for _ in range(abs(steps)):
        threshold = np.nextafter(threshold, np.float32(np.sign(steps)))
    threshold = np.clip(threshold, np.float32(0), np.float32(1))
    assert len(decode(maps, spec, float(threshold)).scores) == (score >= threshold)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([np.inf, -np.inf]), min_size=7, max_size=7))
def test_extreme_logits_stay_finite(make_spec: MakeSpec, logits: list[float]) -> None:
    spec = make_spec()
    assert_sane(decode(one_cell(spec, 2, 3, 1, 4, logits), spec, 0))


@pytest.mark.parametrize("channel", range(6))
def test_nan_is_a_damaged_model(channel: int, make_spec: MakeSpec) -> None:
    logits = [0.0, 0, 0, 0, 50, 50, -50]
    logits[channel] = np.nan
    with pytest.raises(ModelError, match="output p4 holds NaN"):
        decode(one_cell(make_spec(), 1, 1, 0, 3, logits), make_spec(), 0.01)


def test_nan_in_the_objectness_is_noticed_at_any_threshold(make_spec: MakeSpec) -> None:
    for threshold in (0.0, 0.5, 1.0):
        with pytest.raises(ModelError, match="p5"):
            decode(one_cell(make_spec(), 0, 1, 0, 1, [0, 0, 0, 0, np.nan, -9, -9]), make_spec(), threshold)


# --- what a model with `top_k` gives out


def packed(maps: Sequence[np.ndarray], spec: ModelSpec, count: int) -> np.ndarray:
    """The rows that such a model gives out for these maps: the best `count` of the loop's boxes, best first."""
    every = slow_decode(maps, spec, 0)
    order = sorted(range(len(every)), key=lambda index: -every[index][1])[:count]
    rows = []
    for anchor_index in order:
        (x1, y1, x2, y2), score, class_id = every[anchor_index]
        rows.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, score, class_id, anchor_index])
    return np.array(rows, np.float32)


@settings(max_examples=30)
@given(st.sampled_from(["yolo", "retinanet"]), st.integers(1, 40), st.integers(0, 1000), st.sampled_from([0, 0.01, 0.3, 1]))
def test_candidates_are_those_of_the_maps(make_spec: MakeSpec, head: str, count: int, seed: int, threshold: float) -> None:
    small = {"input_size": (32, 32)}
    spec = retinanet(make_spec, **small) if head == "retinanet" else make_spec(**small)
    maps = random_maps(spec, seed)
    rows = packed(maps, spec, count)
    found = decode([rows], spec.replace(top_k=count), threshold)
    every = decode(maps, spec, 0)
    indices = [int(index) for index in sorted(rows[rows[:, 4] >= np.float32(threshold), 6])]
    np.testing.assert_allclose(found.boxes, every.boxes[indices], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.scores, every.scores[indices], rtol=1e-6)
    assert found.class_ids.tolist() == every.class_ids[indices].tolist()
    assert found.levels.tolist() == every.levels[indices].tolist()
    assert found.boxes.dtype == np.float32 and found.class_ids.dtype == np.int64


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([np.inf, -np.inf]), min_size=4, max_size=4))
def test_extreme_candidates_stay_finite(make_spec: MakeSpec, box: list[float]) -> None:
    box[2:] = [abs(side) for side in box[2:]]
    assert_sane(decode([np.array([[*box, 0.5, 1, 0]], np.float32)], make_spec(top_k=1), 0))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        *((column, np.nan, f"output {CANDIDATES_NAME} holds NaN") for column in range(7)),
        *((5, value, "holds a class or an anchor index that the model does not have") for value in (-1, 2, 0.5, np.inf)),
        *((6, value, "holds a class or an anchor index that the model does not have") for value in (-1, 336, 1.5, np.inf)),
        *((4, value, "holds a negative side or a score that is not in 0-1") for value in (-0.1, 1.1, np.inf, -np.inf)),
        *((column, value, "holds a negative side or a score") for column in (2, 3) for value in (-1, -np.inf)),
    ],
)
def test_candidates_that_cannot_be_are_a_damaged_model(column: int, value: float, message: str, make_spec: MakeSpec) -> None:
    spec = make_spec(top_k=2)
    assert sum(spec.boxes_per_level()) == 336
    rows = np.array([[8, 8, 4, 4, 0.9, 1, 335], [8, 8, 4, 4, 0.9, 0, 0]], np.float32)
    assert decode([rows], spec, 0.5).levels.tolist() == [0, 2]
    rows[1, column] = value
    with pytest.raises(ModelError, match=message):
        decode([rows], spec, 0.5)
