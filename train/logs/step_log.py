"""Logs the steps of a run: every few of them to `steps.csv` and TensorBoard, the latest ones on the progress bar."""

from __future__ import annotations

import csv
import io
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.files import write_text
from train.logs.board import AppendedFile, Board
from train.logs.data_wait import Wait
from train.run.folder import STEPS, surviving

_RETRY = 60  # seconds after which a write that failed is tried again


class Step(NamedTuple):
    """A step whose values are on their way.

    Attributes:
        number: of the step in the run, from 1.
        epoch: from 1.
        rate: its learning rate.
        images: of its batch, on all ranks.
        wait: for its data, on this rank.
    """

    number: int
    epoch: int
    rate: float
    images: int
    wait: Wait


class Tally:
    """Sums over some steps.

    Attributes:
        steps: their number.
        images: of all ranks.
        seconds: that they took.
        waited: seconds of these for which the device had no data.
        clipped: steps whose gradient was clipped.
    """

    def __init__(self) -> None:
        self.steps = self.images = self.clipped = 0
        self.seconds = self.waited = 0.0
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])

    def add(self, values: Mapping[str, float], images: int, seconds: float, waited: float, clipped: bool) -> None:
        """Adds a step; a gradient that overflowed, in a step that was left out, is not counted."""
        self.steps, self.images, self.clipped = self.steps + 1, self.images + images, self.clipped + clipped
        self.seconds, self.waited = self.seconds + seconds, self.waited + waited
        for name, value in values.items():
            if math.isfinite(value):
                self._sums[name][0] += value
                self._sums[name][1] += 1

    def means(self) -> dict[str, float]:
        """Returns the mean of each value that was finite in any step."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def rates(self) -> dict[str, float]:
        """Returns `images_per_second`, and in [0, 1] the shares of steps `clipped` and of time as `data_wait`."""
        if not self.steps:
            return {}
        return {
            "clipped": self.clipped / self.steps,
            "images_per_second": self.images / self.seconds if self.seconds else 0.0,
            "data_wait": min(self.waited / self.seconds, 1.0) if self.seconds else 0.0,
        }

    def speed(self) -> str:
        """Says the speed, and what share of the time went into waiting; nothing without steps."""
        if not self.steps:
            return ""
        rates = self.rates()
        return f"  {rates['images_per_second']:.1f} images/s, {rates['data_wait']:.0%} of the time waiting for data"


class StepLog:
    """Logs the steps of a run.

    Args:
        every: steps a row.
        clip: largest norm of a gradient that is not clipped; 0: none is.

    Attributes:
        epoch: the steps of this epoch that this process has made.
        total: all steps that this process has made.
        status: the latest of them in a few words.
    """

    def __init__(self, every: int, clip: float) -> None:
        self._every, self._clip = every, clip or math.inf
        self.epoch, self.total, self._row = Tally(), Tally(), Tally()
        self.status = ""
        self._last: Step | None = None
        self._read_at = 0.0
        self._files: StepFiles | None = None

    def open(self, folder: Path, done: int, losses: Sequence[str], board: Board) -> None:
        """Has rows written; see `StepFiles`."""
        self._files = StepFiles(folder, done, losses, board)

    def begin_epoch(self) -> None:
        """Starts the clock."""
        self.epoch, self._read_at = Tally(), time.perf_counter()

    def add(self, step: Step, values: Mapping[str, float]) -> None:
        """Adds a step whose values have arrived; those of the loss, and `gradient`, its norm before clipping."""
        now = time.perf_counter()
        seconds, self._read_at = now - self._read_at, now
        waited, is_clipped = step.wait.seconds(), self._clip < values["gradient"] < math.inf
        for tally in (self.epoch, self.total, self._row):
            tally.add(values, step.images, seconds, waited, is_clipped)
        rates = self.epoch.rates()
        self.status = (
            f"loss {values['total']:.2f}, rate {step.rate:.2g}, {rates['images_per_second']:.1f} images/s,"
            f" waiting {rates['data_wait']:.0%}"
        )
        self._last = step
        if step.number % self._every == 0:
            self.write()

    def write(self) -> None:
        """Writes a row of the steps behind the last one, if there are any."""
        step, row, self._row = self._last, self._row, Tally()
        if step and row.steps and self._files:
            means = row.means()
            means["gradient_norm"] = means.pop("gradient", math.nan)
            self._files.add(step.number, step.epoch, {"learning_rate": step.rate, **means, **row.rates()})

    def close(self) -> None:
        """Writes the last row."""
        self.write()
        if self._files:
            self._files.close()


class StepFiles:
    """The rows of a run's steps, in `steps.csv` and on TensorBoard.

    A row that cannot be written, as on a full disk, is reported, and written later into `steps.csv`.

    Args:
        folder: of the run.
        done: steps of the run so far; what an interrupted run logged of later ones is dropped.
        losses: names of the loss's values.
        board: run of TensorBoard for the steps.
    """

    def __init__(self, folder: Path, done: int, losses: Sequence[str], board: Board) -> None:
        path, rates = folder / STEPS, ("clipped", "images_per_second", "data_wait")
        self._losses, self._board = tuple(losses), board
        self._columns = ("step", "epoch", "learning_rate", *losses, "gradient_norm", *rates)
        self._unwritten, self._retry_at = "", 0.0
        with surviving():
            self._unwritten = self._text(_rows(path, done), heading=True)
            write_text(path, self._unwritten)
            self._unwritten = ""
        self._file = AppendedFile(path)

    def add(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Adds a row; NaN stands for no value."""
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        row = {"step": str(step), "epoch": str(epoch), **{name: f"{value:.6g}" for name, value in known.items()}}
        self._unwritten += self._text([row])
        if time.monotonic() >= self._retry_at:
            self._retry_at = time.monotonic() + _RETRY
            with surviving():
                self._append()
                tags = {name: f"{'loss' if name in self._losses else 'run'}/{name}" for name in known}
                self._board.add_scalars(step, {tags[name]: value for name, value in known.items()})
                self._retry_at = 0.0

    def close(self) -> None:
        """Writes what could not be written before, if it can be now."""
        with surviving():
            self._append()

    def _append(self) -> None:
        if self._unwritten:
            self._file.append(self._unwritten.encode())
            self._unwritten = ""

    def _text(self, rows: Sequence[Mapping[str, str]], heading: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n", extrasaction="ignore")
        if heading:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _rows(path: Path, done: int) -> list[dict[str, str]]:
    """Reads the whole rows of the steps that are done; none where there is no such file."""
    if not done or not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", "replace").replace("\0", "")  # which a power failure leaves
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return [row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) <= done and None not in row.values()]
