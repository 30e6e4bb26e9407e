"""Plots a benchmark as stacked bars of its stages, once with inference and once without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from runtime.benchmark.report import TOTAL, Report, Row
from runtime.benchmark.stages import STAGES
from runtime.benchmark.timing import ends
from runtime.ops.image import Image
from runtime.viz.canvas import FAINT, GAP, INK, Color, beside, pad, paper, stack, text_size, write

STAGE_COLORS: dict[str, Color] = {
    "load": (150, 140, 130),
    "preprocess": (60, 160, 245),
    "copy": (60, 60, 220),
    "infer": (200, 130, 50),
    "decode": (70, 170, 60),
    "NMS": (190, 80, 160),
}
_GRID: Color = (225, 225, 225)
_LABELS, _WHOLE, _REST = 110, 620, 400  # widths: of the bars' names, and of the two charts with what stands behind the bars
_BEHIND = 150  # of that for the figure behind a bar
_BAR, _ROW, _GROUP, _HEAD, _AXIS = 24, 36, 14, 34, 30  # heights: a bar, with the gap below, between batch sizes, title, axis
_LARGEST_TICKS = 6


def plot(report: Report) -> Image:
    """Draws one uint8 BGR image with a bar for each batch size and model, in median milliseconds an image."""
    rows, tops = _arranged(report.rows)
    outside = [stage for stage in STAGES if stage != "infer"]
    charts = beside(
        [
            _names(rows, tops),
            _chart("all stages", rows, tops, STAGES, _WHOLE),
            _chart("without infer", rows, tops, outside, _REST),
        ]
    )
    return pad(stack([_head(report, charts.shape[1]), charts, _foot(report, charts.shape[1])], gap=GAP))


def _arranged(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """Orders the rows by batch size; each comes with the top of its bar, in pixels of the chart."""
    order = list(dict.fromkeys(row.batch for row in rows))
    found = sorted(rows, key=lambda row: order.index(row.batch))
    return found, [_HEAD + index * _ROW + order.index(row.batch) * _GROUP for index, row in enumerate(found)]


def _height(tops: Sequence[int]) -> int:
    return tops[-1] + _ROW + _AXIS


def _head(report: Report, width: int) -> Image:
    canvas = paper(width, 64)
    low, high = ends(report.rows[0].milliseconds[TOTAL])
    write(canvas, "Milliseconds an image, from its file to its detections", (0, 20), 0.7, INK)
    x = 0
    for stage in STAGES:
        if any(stage in row.milliseconds for row in report.rows):
            cv2.rectangle(canvas, (x, 40), (x + 16, 56), STAGE_COLORS[stage], cv2.FILLED)
            write(canvas, stage, (x + 23, 54), 0.5, INK)
            x += 23 + text_size(stage, 0.5)[0] + 22
    write(canvas, f"medians; the line: {low} to {high} of the total", (x + 10, 54), 0.5, FAINT)
    return canvas


def _names(rows: Sequence[Row], tops: Sequence[int]) -> Image:
    canvas = paper(_LABELS, _height(tops))
    for row, top in zip(rows, tops):
        text = f"batch {row.batch}  {row.letter}"
        write(canvas, text, (_LABELS - text_size(text, 0.5)[0], top + 17), 0.5, INK)
    return canvas


def _chart(title: str, rows: Sequence[Row], tops: Sequence[int], stages: Sequence[str], width: int) -> Image:
    """Draws the bars of some stages on an axis of their own."""
    canvas = paper(width, _height(tops))
    write(canvas, title, (0, 18), 0.5, FAINT)
    with_total = "infer" in stages
    largest = max(_figure(row, TOTAL, ends(row.milliseconds[TOTAL])[1]) if with_total else _sum(row, stages) for row in rows)
    scale = (width - _BEHIND) / max(largest, 1e-9)
    _draw_axis(canvas, largest, scale)
    for row, top in zip(rows, tops):
        end = _draw_bar(canvas, row, top, stages, scale)
        text = f"{_sum(row, stages):.2f}"
        if with_total:
            low, high = (round(_figure(row, TOTAL, name) * scale) for name in ends(row.milliseconds[TOTAL]))
            cv2.line(canvas, (low, top + _BAR + 4), (high, top + _BAR + 4), FAINT, 2)
            text, end = f"{_figure(row, TOTAL):.1f}, {row.images_per_second:.1f}/s", max(end, high)
        write(canvas, text, (end + 8, top + 17), 0.5, INK)
    return canvas


def _draw_axis(canvas: Image, largest: float, scale: float) -> None:
    bottom = canvas.shape[0] - _AXIS
    step = _step(largest)
    for index in range(int(largest / step) + 1):
        x, text = round(index * step * scale), f"{index * step:g}"
        cv2.line(canvas, (x, _HEAD - 6), (x, bottom), _GRID, 1)
        write(canvas, text, (max(x - text_size(text, 0.42)[0] // 2, 0), bottom + 17), 0.42, FAINT)


def _step(largest: float) -> float:
    """Chooses the distance between ticks: 1, 2 or 5 times a power of 10."""
    power = 10.0 ** math.floor(math.log10(max(largest, 1e-9) / _LARGEST_TICKS))
    return next(step for step in (power, 2 * power, 5 * power, 10 * power) if largest / step <= _LARGEST_TICKS)


def _draw_bar(canvas: Image, row: Row, top: int, stages: Sequence[str], scale: float) -> int:
    """Draws one bar; returns the x where it ends."""
    values = [_figure(row, stage) for stage in stages]
    edges = np.round(np.cumsum([0, *values]) * scale).astype(int).tolist()
    for stage, value, left, right in zip(stages, values, edges[:-1], edges[1:]):
        canvas[top : top + _BAR, left:right] = STAGE_COLORS[stage]
        text = f"{value:.2f}" if value < 10 else f"{value:.1f}"
        if right - left > text_size(text, 0.45)[0] + 8:
            write(canvas, text, (left + (right - left - text_size(text, 0.45)[0]) // 2, top + 17), 0.45, (255, 255, 255))
    return int(edges[-1])


def _sum(row: Row, stages: Sequence[str]) -> float:
    return sum(_figure(row, stage) for stage in stages)


def _figure(row: Row, stage: str, name: str = "median") -> float:
    """Milliseconds an image; 0 for a stage that the model does not have."""
    return row.milliseconds[stage][name] / row.batch if stage in row.milliseconds else 0.0


def _foot(report: Report, width: int) -> Image:
    """Names the models, the machine and the protocol."""
    texts = [f"{model.letter}: {Path(model.file).name}, {model.precision}, in {model.runs_in}" for model in report.models]
    here, protocol = report.machine, report.protocol
    texts.append(f"{here.cpu}, {here.cores} cores; {protocol.warm_up} + {protocol.repeats} rounds; {protocol.images}")
    canvas = paper(width, 20 * len(texts))
    for index, text in enumerate(texts):
        write(canvas, text, (0, 20 * index + 14), min(0.45, 0.45 * width / text_size(text, 0.45)[0]), FAINT)
    return canvas
