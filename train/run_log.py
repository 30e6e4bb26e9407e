"""Writes a run's metrics as CSV and TensorBoard scalars, and its images."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.files import read_text, write_text
from runtime.media.image import write_image
from runtime.ops import boxes as box_ops
from runtime.ops.image import Image
from runtime.spec import ModelSpec
from runtime.viz.annotate import draw
from train.data.training_set import Batch


class RunLogger:
    """Writes a run's metrics and images under its folder.

    Args:
        epoch: epochs already completed; TensorBoard drops the later ones of an interrupted run.
        components: names of the loss's parts.
    """

    def __init__(self, folder: Path, epoch: int, components: Sequence[str]) -> None:
        self._folder, self._losses = folder, (*components, "total")
        self._columns = ("epoch", "learning_rate", *self._losses, "AP", "AP50")
        self._board = _open_board(folder, epoch + 1)

    def write_table(self, rows: Sequence[dict[str, str]]) -> None:
        """Writes all rows of `metrics.csv`; a column without value stays empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._folder / "metrics.csv", text.getvalue())

    def add_scalars(self, epoch: int, values: dict[str, float]) -> None:
        """Adds one epoch's values to TensorBoard."""
        with self._reopened(epoch):
            for name, value in values.items():
                group = "loss" if name in self._losses else "accuracy" if name.startswith("AP") else "run"
                self._board.add_scalar(f"{group}/{name}", value, epoch)
            self._board.flush()

    def add_image(self, name: str, image: Image, epoch: int) -> None:
        """Writes a uint8 BGR image as `<name>.jpg` and to TensorBoard."""
        write_image(self._folder / f"{name}.jpg", image)
        with self._reopened(epoch):
            self._board.add_image(name, image[..., ::-1], epoch, dataformats="HWC")

    @contextlib.contextmanager
    def _reopened(self, epoch: int) -> Iterator[None]:
        """Opens TensorBoard's file anew after an error of the block: a writer that failed once, as on a full disk, is dead."""
        try:
            yield
        except OSError:
            self.close()
            self._board = _open_board(self._folder, epoch)
            raise

    def close(self) -> None:
        """Flushes everything; on a full disk the rest is dropped, since the run's own error says more."""
        with contextlib.suppress(OSError):
            self._board.close()


def _open_board(folder: Path, first: int) -> Any:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and nobody else needs it

    return SummaryWriter(str(folder / "tensorboard"), purge_step=first)


def read_metrics(file: Path) -> list[dict[str, str]]:
    """Reads the rows of a run's `metrics.csv`, an epoch each; none where there is no such file."""
    if not file.exists():
        return []
    return [row for row in csv.DictReader(io.StringIO(read_text(file))) if (row.get("epoch") or "").isdigit()]


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
