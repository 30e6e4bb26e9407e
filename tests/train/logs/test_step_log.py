"""The log of a run's steps: each step in one row, whatever stops the run in between."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from tests.support.short_disk import ShortDisk
from train.logs import step_log
from train.logs.data_wait import Wait
from train.logs.step_log import Step, StepFiles, StepLog

LOSSES = ("iou", "total")
COLUMNS = ["step", "epoch", "learning_rate", "iou", "total", "gradient_norm", "clipped", "images_per_second", "data_wait"]
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def board() -> MagicMock:
    """Stands for a run of TensorBoard."""
    return MagicMock()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the time on."""
    now = [100.0]
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(step_log.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "steps.csv").read_text())))


def values(total: float, gradient: float = 1.0) -> dict[str, float]:
    return {"iou": total / 2, "total": total, "gradient": gradient}


def scalars(board: MagicMock) -> dict[str, list[tuple[float, int]]]:
    found: dict[str, list[tuple[float, int]]] = {}
    for call in board.add_scalars.call_args_list:
        step, values = call.args
        for tag, value in values.items():
            found.setdefault(tag, []).append((value, step))
    return found


def test_a_row_has_the_means_and_shares_of_its_steps(tmp_path: Path, clock: Callable[[float], None], board: MagicMock) -> None:
    log = StepLog(every=2, clip=10.0)
    log.open(tmp_path, 0, LOSSES, board)
    log.begin_epoch()
    for number, (total, gradient, waited) in enumerate([(4.0, 5.0, 0.5), (8.0, 15.0, 0.0), (6.0, 40.0, 1.0)], 1):
        clock(1.0)
        log.add(Step(number, 1, number / 100, 8, Wait(waited)), values(total, gradient))
    assert log.status == "loss 6.00, rate 0.03, 8.0 images/s, waiting 50%"
    clock(100.0)  # an evaluation
    log.begin_epoch()
    assert log.epoch.steps == 0
    clock(2.0)
    log.add(Step(4, 2, 0.04, 4, Wait(0.0)), values(2.0, INF))  # left out by the scaler
    clock(1.0)
    log.add(Step(5, 2, 0.05, 8, Wait(9.0)), values(2.0, INF))
    log.close()
    assert [list(row.values()) for row in rows(tmp_path)] == [
        ["2", "1", "0.02", "3", "6", "10", "0.5", "8", "0.25"],
        ["4", "2", "0.04", "2", "4", "40", "0.5", "4", f"{1 / 3:.6g}"],
        ["5", "2", "0.05", "1", "2", "", "0", "8", "1"],
    ]
    assert list(rows(tmp_path)[0]) == COLUMNS
    assert scalars(board)["loss/total"] == [(6.0, 2), (4.0, 4), (2.0, 5)]
    assert scalars(board)["run/gradient_norm"] == [(10.0, 2), (40.0, 4)]
    assert (log.total.steps, log.total.images, log.total.clipped, log.total.seconds) == (5, 36, 2, 6.0)


@pytest.mark.parametrize(("clip", "gradient", "clipped"), [(10, 10.0, 0), (10, 10.1, 1), (10, INF, 0), (0, 1e9, 0)])
def test_a_gradient_is_clipped_above_the_limit(clip: float, gradient: float, clipped: int) -> None:
    log = StepLog(every=1, clip=clip)
    log.begin_epoch()
    log.add(Step(1, 1, 0.1, 8, Wait(0.0)), values(1.0, gradient))
    assert log.total.clipped == clipped


HEADING = ",".join(COLUMNS)


def row(step: int) -> str:
    return f"{step},1,0.1,1,2,3,0,8,0"


@pytest.mark.parametrize(
    ("left", "done", "kept"),
    [
        (None, 0, []),
        (None, 30, []),
        ("", 30, []),
        ("\n".join([HEADING, row(20), row(40), ""]), 0, []),
        ("\n".join([HEADING, row(20), row(40), row(60), ""]), 40, ["20", "40"]),
        ("\n".join([HEADING, row(20), row(40)]), 60, ["20"]),  # the last one may be cut short
        ("\n".join([HEADING, row(20), row(40)[:9], ""]), 60, ["20"]),
        ("\n".join([HEADING, row(20), "\0\0\0" + row(40), "\udcff", ""]), 60, ["20", "40"]),
        ("\n".join([HEADING, row(20) + ",7", "a,b", ""]), 60, ["20"]),
        ("step,total\n20,5\n", 60, ["20"]),  # of an earlier version
        ("no table\n\n", 60, []),
    ],
)
def test_a_continued_log_has_the_whole_rows_of_the_steps_done(
    left: str | None, done: int, kept: list[str], tmp_path: Path, board: MagicMock
) -> None:
    if left is not None:
        (tmp_path / "steps.csv").write_text(left, errors="surrogateescape")
    files = StepFiles(tmp_path, done, LOSSES, board)
    files.add(done + 20, 2, {"learning_rate": 0.1, "total": 1.0})
    files.close()
    assert [row["step"] for row in rows(tmp_path)] == [*kept, str(done + 20)]
    assert list(rows(tmp_path)[0]) == COLUMNS


def test_rows_wait_for_space_and_are_reported_once_a_minute(
    tmp_path: Path,
    board: MagicMock,
    clock: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files, disk = StepFiles(tmp_path, 0, LOSSES, board), ShortDisk(monkeypatch, "steps.csv")
    files.add(1, 1, values(1.0))
    disk.full = True
    for step in (2, 3, 4):
        files.add(step, 1, values(1.0))
        clock(25.0)
    assert caplog.text.count("No space left") == 1 and "training goes on" in caplog.text
    disk.full = False
    files.add(5, 1, values(1.0))
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5"]
    disk.full = True
    clock(100.0)
    files.add(6, 1, values(1.0))
    disk.full = False
    files.close()
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5", "6"]


def test_a_log_without_files_counts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = StepLog(every=1, clip=0)
    log.begin_epoch()
    log.add(Step(1, 1, 0.1, 8, Wait(0.0)), values(1.0))
    log.close()
    assert log.total.steps == 1 and not list(tmp_path.iterdir())


def test_nothing_is_written_where_no_step_was_made(tmp_path: Path, board: MagicMock) -> None:
    log = StepLog(every=1, clip=0)
    log.open(tmp_path, 0, LOSSES, board)
    log.write()
    log.close()
    assert (tmp_path / "steps.csv").read_text() == HEADING + "\n"
