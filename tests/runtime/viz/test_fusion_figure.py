"""The figure of a view: heat where the numbers are, each map in its place, at any image's shape."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from runtime.detections import Detections
from runtime.spec import ModelSpec
from runtime.viz.fusion_figure import figure, heat, level_color
from runtime.viz.fusion_view import View

MakeSpec = Callable[..., ModelSpec]


def gray(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def view(width: int = 300, height: int = 240, boxes: int = 0, shares: tuple[float, ...] = (0.2, 0.3, 0.5)) -> View:
    """A view over which every map is even, with one detection of each of the first levels."""
    corners = [(10 + 60 * i, 90, 40 + 60 * i, 130) for i in range(boxes)]
    found = Detections.from_arrays(corners, [0.9] * boxes, [0] * boxes)
    weights = [np.tile(np.array(shares, np.float32).reshape(3, 1, 1), (1, height, width)) for _ in range(3)]
    activations = [np.ones((height, width), np.float32) for _ in range(3)]
    return View(gray(width, height), found, np.arange(boxes), weights, activations)


def place(drawn: np.ndarray, part: np.ndarray) -> tuple[int, int]:
    """(row, column) of the only place where `part`, told by its corner's green, stands in an image."""
    corner = part[:120, :120, 1]
    distance = cv2.matchTemplate(drawn[..., 1], corner, cv2.TM_SQDIFF)  # in float32, so 0 only roughly
    near = zip(*(found.tolist() for found in np.nonzero(distance < corner.size)))
    places = [(row, column) for row, column in near if (drawn[row : row + 120, column : column + 120, 1] == corner).all()]
    assert len(places) == 1, places
    return places[0]


def lower_edge(drawn: np.ndarray, index: int) -> np.ndarray:
    """The middle of the lower edge of a box of `view`, whose image is drawn 2.75 times as large after 24 pixels."""
    return drawn[24 + round(2.75 * 130), 24 + round(2.75 * (25 + 60 * index))].astype(int)


def test_heat_is_where_the_numbers_are() -> None:
    values = np.zeros((4, 6), np.float32)
    values[1, 4] = 1
    drawn = heat(values, gray(60, 40), cv2.COLORMAP_INFERNO).astype(int)
    assert drawn.shape == (40, 60, 3)
    hot = drawn.sum(axis=2) > drawn.sum(axis=2).min()
    assert hot[10:20, 40:50].all() and hot.sum() == 100
    cold, warm = cv2.applyColorMap(np.array([[0, 255]], np.uint8), cv2.COLORMAP_INFERNO)[0].astype(int)
    np.testing.assert_allclose(drawn[0, 0], 0.6 * cold + 0.4 * 90, atol=1)
    np.testing.assert_allclose(drawn[15, 45], 0.6 * warm + 0.4 * 90, atol=1)


def test_the_image_shows_through() -> None:
    image = gray(60, 40)
    image[10:20] = 250
    drawn = heat(np.full((40, 60), 0.5, np.float32), image, cv2.COLORMAP_TURBO).astype(int)
    assert (drawn[15] > drawn[5] + 40).all()


def test_every_map_stands_in_its_row_and_column(make_spec: MakeSpec) -> None:
    seen = view()
    rng = np.random.default_rng(0)
    maps = [rng.random((4, 5)).astype(np.float32) for _ in range(12)]
    for level in range(3):
        for source in range(3):
            seen.weights[level][source] = np.kron(maps[4 * level + source], np.ones((60, 60)))
        seen.activations[level][:] = 3 * np.kron(maps[4 * level + 3], np.ones((60, 60)))
    drawn = figure(seen, make_spec())
    places = []
    for index, cells in enumerate(maps):
        activation = index % 4 == 3
        values, colors = (cells / cells.max(), cv2.COLORMAP_INFERNO) if activation else (cells, cv2.COLORMAP_TURBO)
        places.append(place(drawn, heat(values, gray(300, 240), colors)))
    rows, columns = sorted({row for row, _ in places}), sorted({column for _, column in places})
    assert len(rows) == 3 and len(columns) == 4
    assert places == [(row, column) for row in rows for column in columns]


@pytest.mark.parametrize(("width", "height"), [(300, 240), (1920, 1080), (20, 30), (1, 1), (1000, 20), (20, 1000)])
def test_size_and_room_for_all_of_it(width: int, height: int, make_spec: MakeSpec) -> None:
    drawn = figure(view(width, height), make_spec())
    assert drawn.dtype == np.uint8
    scale = 300 / max(width, height)
    cell_width, cell_height = max(round(width * scale), 190), max(round(height * scale), 84)
    grid_width = 118 + 4 * (cell_width + 14)
    large = min((grid_width - 408) / width, 660 / height)  # beside the legend
    assert drawn.shape[1] == 48 + grid_width
    assert drawn.shape[0] >= 48 + 3 * (cell_height + 26) + round(height * large)
    background = drawn[0, 0]
    for edge in (drawn[:20], drawn[-20:], drawn[:, :20], drawn[:, -20:]):  # nothing is cut off
        assert (edge == background).all()


def test_detections_have_the_color_of_their_level(make_spec: MakeSpec) -> None:
    drawn = figure(view(boxes=3), make_spec())
    for level, stride in enumerate((32, 16, 8)):
        assert np.abs(lower_edge(drawn, level) - level_color(stride)).max() <= 20


def test_colors_of_levels_differ() -> None:
    colors = np.array([level_color(stride) for stride in (8, 16, 32, 64, 128)])
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2)
    assert distances[~np.eye(5, dtype=bool)].min() > 120


def test_bars_are_as_long_as_the_mean_shares(make_spec: MakeSpec) -> None:
    def painted(shares: tuple[float, ...], stride: int) -> int:
        return int((figure(view(shares=shares), make_spec()) == level_color(stride)).all(axis=2).sum())

    for source, stride in enumerate((32, 16, 8)):
        one = tuple(float(source == i) for i in range(3))
        none = tuple(float((source + 1) % 3 == i) for i in range(3))
        bar = painted(one, stride) - painted(none, stride)
        half = painted(tuple((a + b) / 2 for a, b in zip(one, none)), stride) - painted(none, stride)
        assert bar > 3 * 300 * 10
        assert half == pytest.approx(bar / 2, rel=0.02)


def test_nothing_active_and_more_levels_than_are_fused(make_spec: MakeSpec) -> None:
    base = make_spec()
    spec = base.replace(strides=(128, 64, 32, 16, 8), anchors=(base.anchors[0],) * 5, input_size=(128, 128))
    seen = view(boxes=5)
    for activation in seen.activations:
        activation[:] = 0
    drawn = figure(seen, spec)
    for level, stride in enumerate(spec.strides):
        assert np.abs(lower_edge(drawn, level) - level_color(stride)).max() <= 20
