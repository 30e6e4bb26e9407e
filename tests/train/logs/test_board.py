"""TensorBoard's files, as TensorBoard reads them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.support.short_disk import ShortDisk
from train.logs.board import AppendedFile, Board


def read(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    found = accumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    found.Reload()
    return found


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_tensorboard_reads_all_kinds(tmp_path: Path) -> None:
    threads, image = threading.active_count(), np.zeros((20, 30, 3), np.uint8)
    image[..., 0] = 200
    board = Board(tmp_path / "made" / "here", 1)
    assert not (tmp_path / "made").exists()  # before there is anything
    board.add_scalars(1, {"loss/total": 2.5, "run/rate": 0.5})
    board.add_shares(1, {"fusion/P5": np.array([0.0, 0.25, 1.0, 0.25])})
    board.add_image(2, "validation", image)
    assert threading.active_count() == threads
    found = read(tmp_path / "made" / "here")
    assert [(event.step, event.value) for event in found.Scalars("loss/total")] == [(1, 2.5)]
    [histogram] = found.Histograms("fusion/P5")
    assert (histogram.step, histogram.histogram_value.num, histogram.histogram_value.sum) == (1, 4, 1.5)
    [shown] = found.Images("validation")
    pixels = cv2.imdecode(np.frombuffer(shown.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(pixels, image)


def test_a_continued_run_replaces_what_an_interrupted_one_left(tmp_path: Path) -> None:
    for first, value in ((1, 1.0), (3, 2.0)):
        board = Board(tmp_path, first)
        for step in range(first, 5):
            board.add_scalars(step, {"x": value})
    assert scalars(tmp_path, "x") == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


@pytest.mark.parametrize("full", [{1}, {2, 3}, {4}])
def test_a_full_disk_costs_what_it_had_no_room_for(full: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, disk = Board(tmp_path, 1), ShortDisk(monkeypatch, "events")
    for step in (1, 2, 3, 4, 5):
        disk.full = step in full
        if disk.full:
            with pytest.raises(OSError, match="No space left"):
                board.add_scalars(step, {"x": 1.0, "y": 2.0})
        else:
            board.add_scalars(step, {"x": 1.0, "y": 2.0})
    assert [step for step, _ in scalars(tmp_path, "y")] == [step for step in (1, 2, 3, 4, 5) if step not in full]


@pytest.mark.parametrize("removed", [False, True])
def test_a_file_grows_by_whole_parts(removed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "grown"
    AppendedFile(path).append(b"one ")
    file, disk = AppendedFile(path), ShortDisk(monkeypatch, "grown")
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        file.append(b"a part that is too long ")
    assert path.read_bytes() == b"one a part "
    disk.full = False
    if removed:
        path.unlink()
    file.append(b"two")
    assert path.read_bytes() == (b"two" if removed else b"one two")
