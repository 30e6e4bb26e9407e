"""Draws a `View` as one image: detections colored by their level, and the shares of each fused level."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.backends.inspection import FUSED_STRIDES
from runtime.detections import Detections
from runtime.ops.image import Image
from runtime.spec import ModelSpec, level_name
from runtime.viz.annotate import draw
from runtime.viz.canvas import FAINT, GAP, INK, Color, beside, pad, paper, stack, text_size, write
from runtime.viz.fusion_view import View

_LONG_SIDE = 300  # of a heat map in pixels
_LARGE_HEIGHT = 660  # of the image with the detections at most; beside the legend it is as wide as the grid below it
_LEAST_WIDTH, _LEAST_HEIGHT = 190, 84  # of a grid cell, so that its texts fit whatever the image's shape is
_LEGEND_WIDTH = 380
_BAR_WIDTH, _LINE = 360, 26
_ROW_LABEL, _CAPTION = 118, 26
_LEVEL_COLORS: tuple[Color, ...] = ((235, 120, 20), (50, 170, 40), (40, 50, 230), (200, 60, 170), (0, 170, 230))
_SHARE_COLORS, _ACTIVATION_COLORS = cv2.COLORMAP_TURBO, cv2.COLORMAP_INFERNO
_OPACITY = 0.6  # of a heat map over the gray image
_SHARES = ("alpha", "beta", "gamma")


def level_color(stride: int) -> Color:
    """A steady BGR color for the level of a stride, a power of 2."""
    return _LEVEL_COLORS[(stride.bit_length() - 1) % len(_LEVEL_COLORS)]


def figure(view: View, spec: ModelSpec) -> Image:
    """Draws a view as one uint8 BGR image, 980 to 1,420 pixels wide.

    Above, the image with its detections and a legend. Below, a row for each fused level (strides 32, 16, 8): the share of
    each level in it as heat maps (0 to 1), and the fused feature's activation (0 to its largest value in the image).
    """
    grid = _grid(view)
    return pad(stack([_head(view, spec, grid.shape[1]), grid], gap=2 * GAP))


def heat(values: NDArray[np.float32], image: Image, colors: int) -> Image:
    """Paints a map over an image turned gray, in the image's size.

    Args:
        values: float32 `[h, w]` in [0, 1].
        image: uint8 BGR `[H, W, 3]`.
        colors: an OpenCV color map.
    """
    size = (image.shape[1], image.shape[0])
    levels = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    # Nearest: a cell keeps its own value and shows how fine its level is; between two values lies a third one's color.
    painted = cv2.applyColorMap(cv2.resize(levels, size, interpolation=cv2.INTER_NEAREST), colors)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return np.asarray(cv2.addWeighted(painted, _OPACITY, gray, 1 - _OPACITY, 0), np.uint8)


def _grid(view: View) -> Image:
    small = _fitted(view.image, _LONG_SIDE, _LONG_SIDE)
    width, height = max(small.shape[1], _LEAST_WIDTH), max(small.shape[0], _LEAST_HEIGHT)
    headings = [f"{share}: from {_level(stride)}" for share, stride in zip(_SHARES, FUSED_STRIDES)]
    rows = [beside([paper(_ROW_LABEL, _CAPTION), *(_caption(text, width) for text in (*headings, "activation"))])]
    for stride, shares, activation in zip(FUSED_STRIDES, view.weights, view.activations):
        largest = float(activation.max())
        cells = [_cell(heat(share, small, _SHARE_COLORS), f"mean {share.mean():.2f}", width, height) for share in shares]
        relative = activation / np.float32(largest or 1)
        cells.append(_cell(heat(relative, small, _ACTIVATION_COLORS), f"largest {largest:.3g}", width, height))
        rows.append(beside([_row_label(stride, cells[0].shape[0]), *cells]))
    return stack(rows, gap=GAP)


def _cell(image: Image, text: str, width: int, height: int) -> Image:
    """Draws a heat map with its caption below, in a cell of at least its size."""
    canvas = paper(width, height + _CAPTION)
    canvas[: image.shape[0], : image.shape[1]] = image
    write(canvas, text, (0, image.shape[0] + 18), 0.48, FAINT)
    return canvas


def _caption(text: str, width: int) -> Image:
    canvas = paper(width, _CAPTION)
    write(canvas, text, (0, 18), 0.6, INK)
    return canvas


def _row_label(stride: int, height: int) -> Image:
    canvas = paper(_ROW_LABEL, height)
    cv2.rectangle(canvas, (0, 0), (5, height - _CAPTION - 1), level_color(stride), cv2.FILLED)
    write(canvas, _level(stride), (18, 30), 0.9, INK)
    write(canvas, f"stride {stride}", (18, 56), 0.5, FAINT)
    return canvas


def _head(view: View, spec: ModelSpec, width: int) -> Image:
    large = _fitted(view.image, width - _LEGEND_WIDTH - 2 * GAP, _LARGE_HEIGHT)
    boxes = view.found.boxes * np.array([large.shape[1] / view.image.shape[1], large.shape[0] / view.image.shape[0]] * 2)
    found = Detections.from_arrays(boxes, view.found.scores, view.found.class_ids)
    colors = [level_color(spec.strides[level]) for level in view.levels]
    annotated = draw(large, found, spec.class_names, colors)
    return beside([annotated, _legend(view, spec)], gap=2 * GAP)


def _legend(view: View, spec: ModelSpec) -> Image:
    """Explains the colors; counts the detections of each level; draws its mean shares."""
    height, width = spec.input_size
    title = paper(_LEGEND_WIDTH, 62)
    write(title, spec.name, (0, 20), min(0.75, 0.75 * _LEGEND_WIDTH / text_size(spec.name, 0.75)[0]), INK)
    write(title, f"input {width} x {height}, {spec.resize}", (0, 46), 0.5, FAINT)
    shares = _color_bar("Share of each level at each place", _SHARE_COLORS, ("0", "0.5", "1"))
    activation = _color_bar("Activation: mean |fused feature|", _ACTIVATION_COLORS, ("0", "", "largest"))
    return stack([title, _counts(view, spec), _mean_shares(view), shares, activation], gap=6)


def _counts(view: View, spec: ModelSpec) -> Image:
    canvas = paper(_LEGEND_WIDTH, 32 + _LINE * len(spec.strides))
    write(canvas, "Detections by the level that made them", (0, 16), 0.55, INK)
    for level, stride in enumerate(spec.strides):
        y = 44 + _LINE * level
        cv2.rectangle(canvas, (0, y - 13), (22, y + 1), level_color(stride), cv2.FILLED)
        write(canvas, f"{_level(stride)}   stride {stride}", (34, y), 0.5, INK)
        write(canvas, str(int((view.levels == level).sum())), (180, y), 0.5, INK)
    return canvas


def _mean_shares(view: View) -> Image:
    """Draws for each fused level a bar of the image's mean shares, in the colors of the levels they come from."""
    canvas = paper(_LEGEND_WIDTH, 32 + _LINE * len(FUSED_STRIDES))
    write(canvas, "Mean share of each level, fused", (0, 16), 0.55, INK)
    for row, (stride, shares) in enumerate(zip(FUSED_STRIDES, view.weights)):
        y = 44 + _LINE * row
        write(canvas, _level(stride), (0, y), 0.5, INK)
        edges = np.round(np.cumsum([0, *shares.mean(axis=(1, 2))]) * (_BAR_WIDTH - 34)).astype(int).tolist()
        for source, left, right in zip(FUSED_STRIDES, edges[:-1], edges[1:]):
            canvas[y - 13 : y + 2, 34 + left : 34 + right] = level_color(source)
    return canvas


def _color_bar(title: str, colors: int, ticks: Sequence[str]) -> Image:
    """Draws the colors that `heat` paints with, on middle gray, with evenly spaced ticks."""
    canvas, top, height = paper(_LEGEND_WIDTH, 66), 26, 16
    write(canvas, title, (0, 16), 0.55, INK)
    ramp = np.tile(np.linspace(0, 1, _BAR_WIDTH, dtype=np.float32), (height, 1))
    canvas[top : top + height, :_BAR_WIDTH] = heat(ramp, np.full((height, _BAR_WIDTH, 3), 128, np.uint8), colors)
    for index, text in enumerate(ticks):
        x = index * _BAR_WIDTH // (len(ticks) - 1)
        wide = text_size(text, 0.45)[0]
        left = min(max(x - wide // 2, 0), _BAR_WIDTH - wide)
        write(canvas, text, (left, top + height + 16), 0.45, FAINT)
    return canvas


def _level(stride: int) -> str:
    return level_name("P", stride)


def _fitted(image: Image, width: int, height: int) -> Image:
    """Scales an image until it just fits, its aspect ratio kept."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.uint8)
