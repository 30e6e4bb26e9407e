"""Plots a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.evaluation.confusion import BACKGROUND
from runtime.ops.image import Image
from runtime.viz.canvas import (
    FAINT,
    GAP,
    INK,
    PAPER,
    Color,
    beside,
    class_label,
    paper,
    paste,
    shorten,
    stack,
    text_size,
    titled,
    upwards,
    write,
)

Floats = NDArray[np.float64]

_FULL: Color = (130, 70, 20)  # of a cell that holds its whole row
_LINE: Color = (225, 225, 225)
_LONGEST = 200  # of a class name in pixels
_FEW = 12  # classes, up to which cells are large and zeros are written


def plot_confusion(counts: Floats, class_names: Sequence[str], subtitle: str) -> Image:
    """Draws a confusion matrix with a count in each cell, uint8 BGR; the shade is the cell's share of its row.

    Args:
        counts: float64 `[C + 1, C + 1]`, see `runtime.evaluation.confusion.confusion_matrix`.
        class_names: of the C classes.
        subtitle: the second line of the title.
    """
    names = [*(class_label(name, index) for index, name in enumerate(class_names)), BACKGROUND]
    size = 0.5 if len(class_names) <= _FEW else 0.4
    texts = [[_text(value, len(class_names) <= _FEW) for value in row] for row in counts]
    height = 44 if len(class_names) <= _FEW else 22
    width = max(height, *(text_size(text, size)[0] + 10 for row in texts for text in row if text))
    totals = np.nansum(counts, axis=1, keepdims=True)
    shares = np.nan_to_num(np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0))
    cells = [beside([_cell(*item, (width, height), size) for item in zip(*row)], gap=0) for row in zip(texts, shares)]
    body = beside([_row_names(names, height, size), stack(cells, gap=0)], gap=8)
    head = _column_names(names, width, size)
    left = body.shape[1] - width * len(names)
    canvas = paper(max(body.shape[1], left + head.shape[1]), head.shape[0] + body.shape[0])
    paste(canvas, head, left, 0)
    paste(canvas, body, 0, head.shape[0])
    write(canvas, "labeled", (0, head.shape[0] - 8), size, FAINT)
    write(canvas, "detected as", (left, 12), size, FAINT)
    return titled("Confusion matrix", subtitle, canvas)


def _text(count: float, zeros: bool) -> str:
    if np.isnan(count):
        return "-"
    return f"{count:.0f}" if count or zeros else ""


def _cell(text: str, share: float, size: tuple[int, int], font: float) -> Image:
    width, height = size
    color = np.round(np.array(PAPER) + (np.array(_FULL) - PAPER) * share).astype(np.uint8)
    canvas = np.tile(color, (height, width, 1))
    cv2.rectangle(canvas, (0, 0), (width - 1, height - 1), _LINE, 1)
    wide, high, _ = text_size(text, font)
    ink = (255, 255, 255) if share > 0.5 else FAINT if text in ("0", "-") else INK
    write(canvas, text, ((width - wide) // 2, (height + high) // 2), font, ink)
    return canvas


def _row_names(names: Sequence[str], height: int, size: float) -> Image:
    shown = [shorten(name, size, _LONGEST) for name in names]
    widths = [text_size(name, size)[0] for name in [*shown, "labeled"]]
    canvas = paper(max(widths), height * len(names))
    for row, (name, wide) in enumerate(zip(shown, widths)):
        high = text_size(name, size)[1]
        write(canvas, name, (max(widths) - wide, row * height + (height + high) // 2), size, INK)
    return canvas


def _column_names(names: Sequence[str], width: int, size: float) -> Image:
    """Draws the names above the columns: level where all fit, else upwards. Above them is room for the axis's title."""
    shown = [shorten(name, size, _LONGEST) for name in names]
    level = all(text_size(name, size)[0] <= width - 6 for name in shown)
    labels = [_level(name, size) if level else upwards(name, size, INK) for name in shown]
    top = 12 + GAP
    canvas = paper(max(width * len(names), text_size("detected as", size)[0]), top + max(len(label) for label in labels) + 8)
    for column, label in enumerate(labels):
        paste(canvas, label, column * width + (width - label.shape[1]) // 2, canvas.shape[0] - 8 - len(label))
    return canvas


def _level(text: str, size: float) -> Image:
    width, height, depth = text_size(text, size)
    label = paper(width, height + depth)
    write(label, text, (0, height), size, INK)
    return label
