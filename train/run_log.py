"""Writes the metrics of a run's epochs as CSV and TensorBoard scalars, and its images."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.files import read_text, write_text
from runtime.media.image import write_image
from runtime.ops import boxes as box_ops
from runtime.ops.image import Image
from runtime.spec import ModelSpec
from runtime.viz.annotate import draw
from train.data.training_set import Batch
from train.logs.board import Board
from train.logs.fusion_weights import FUSION_COLUMNS
from train.run.folder import BOARD, METRICS


class RunLogger:
    """Writes the metrics and images of a run's epochs under its folder.

    Args:
        folder: of the run.
        epoch: epochs already completed; TensorBoard drops the later ones of an interrupted run.
        losses: names of the loss's values.
        class_names: of the spec.
        fused: the model has fusion weights.
    """

    def __init__(self, folder: Path, epoch: int, losses: Sequence[str], class_names: Sequence[str], fused: bool) -> None:
        self._folder = folder
        groups = dict.fromkeys(losses, "loss") | dict.fromkeys(("AP", "AP50"), "accuracy")
        self._tags = {name: f"{group}/{name}" for name, group in groups.items()} | class_tags(class_names)
        self._columns = ("epoch", "learning_rate", *losses, "AP", "AP50", "gradient_norm", *map(class_column, class_names))
        self._columns += FUSION_COLUMNS if fused else ()
        self._board = Board(folder / BOARD, epoch + 1)

    def write_table(self, rows: Sequence[dict[str, str]]) -> None:
        """Writes all rows of `metrics.csv`; a column without value stays empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._folder / METRICS, text.getvalue())

    def add_scalars(self, epoch: int, values: dict[str, float]) -> None:
        """Adds one epoch's values to TensorBoard."""
        groups = {name: "fusion" if name in FUSION_COLUMNS else "run" for name in values}
        self._board.add_scalars(
            epoch, {self._tags.get(name, f"{groups[name]}/{name}"): value for name, value in values.items()}
        )

    def add_fusion(self, epoch: int, samples: Mapping[str, NDArray[np.float64]]) -> None:
        """Adds the distribution of the fusion weights to TensorBoard."""
        self._board.add_shares(epoch, {f"fusion/{name}": values for name, values in samples.items()})

    def add_image(self, tag: str, image: Image, epoch: int, *file_names: str) -> None:
        """Writes a uint8 BGR image to files in the folder, and to TensorBoard."""
        for name in file_names:
            write_image(self._folder / name, image)
        self._board.add_image(epoch, tag, image)

    def open_steps(self, done: int) -> Board:
        """Opens the run of TensorBoard that counts steps, of which some are done."""
        return Board(self._folder / BOARD / "steps", done + 1)


def class_column(name: str) -> str:
    """Returns the column of `metrics.csv` for the AP of a class."""
    return f"AP {name}"


def class_tags(class_names: Sequence[str]) -> dict[str, str]:
    """Returns TensorBoard's tag of each class's column; names that it cannot tell apart have their class id too."""
    plain = [re.sub(r"[^-\w.]", "_", name) for name in class_names]
    unique = [name if plain.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(plain)]
    return {class_column(name): f"accuracy_by_class/{tag}" for name, tag in zip(class_names, unique)}


def read_metrics(file: Path) -> list[dict[str, str]]:
    """Reads the rows of a run's `metrics.csv`, an epoch each; none where there is no such file."""
    if not file.exists():
        return []
    return [row for row in csv.DictReader(io.StringIO(read_text(file))) if (row.get("epoch") or "").isdigit()]


def number(row: Mapping[str, str], name: str) -> float:
    """Reads a value of a row; NaN where it has none."""
    try:
        return float(row.get(name) or math.nan)
    except ValueError:  # edited by hand
        return math.nan


def show_batch(batch: Batch, spec: ModelSpec, most: int = 8) -> Image:
    """Draws a training batch as the network sees it, with its labels, as one uint8 BGR image."""
    images = []
    for image, labels in zip(batch.images.numpy()[:most], batch.labels.numpy()[:most]):
        real = labels[np.abs(labels).sum(axis=1) > 0]
        boxes = box_ops.cxcywh_to_xyxy(real[:, 1:5])
        images.append(draw(image, Detections.from_arrays(boxes, real[:, 5], real[:, 0]), spec.class_names))
    return tile(images)


def tile(images: list[Image], columns: int = 4, side: int = 320) -> Image:
    """Tiles images of any size on a grid of gray squares."""
    rows = -(-len(images) // columns)
    canvas = np.full((rows * side, min(columns, len(images)) * side, 3), 60, np.uint8)
    for index, image in enumerate(images):
        scale = side / max(image.shape[:2])
        height, width = (max(round(length * scale), 1) for length in image.shape[:2])
        top, left = index // columns * side, index % columns * side
        canvas[top : top + height, left : left + width] = cv2.resize(image, (width, height))
    return canvas
