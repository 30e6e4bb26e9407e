"""Writes the checkpoints of a run into its folder, and finds the one to continue from."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import InputError, ModelError, OutputError
from runtime.files import sweep_temporaries
from train import checkpoint
from train.checkpoint import Checkpoint
from train.run.state import RunState

log = logging.getLogger(__name__)

LAST, BEST = "last.pt", "best.pt"
METRICS, STEPS, BOARD, CURVES = "metrics.csv", "steps.csv", "tensorboard", "curves.png"
TRAINING, VALIDATION, BEST_VALIDATION = "training.jpg", "validation-last.png", "validation-best.png"
_OF_A_RUN = (BEST, METRICS, STEPS, CURVES, VALIDATION, BEST_VALIDATION, "split.json")
_WRITTEN = (LAST, TRAINING, *_OF_A_RUN)


class RunFolder:
    """The folder of a run, written by one process.

    A checkpoint that cannot be written, as on a full disk, is reported and training goes on: the last good one stays.

    Args:
        path: the folder, which this process has locked.
        keep: checkpoints kept: `last.pt`, `last-1.pt`, ... `last-<keep - 1>.pt`.
        steps: steps between checkpoints; None for no limit.
        minutes: minutes between checkpoints.
    """

    def __init__(self, path: Path, keep: int, steps: int | None, minutes: float) -> None:
        self.path, self._keep, self._steps, self._seconds = path, keep, steps, 60 * minutes
        self._saved_at, self._steps_since = time.monotonic(), 0
        self._unwritten_best: Checkpoint | None = None
        for name in _WRITTEN:  # of a run that was killed while it wrote
            sweep_temporaries(path / name)

    def begin(self, state: RunState) -> None:
        """Removes the files of an earlier run, which would pass for this one's, and writes the first checkpoint.

        Raises:
            OutputError: it cannot be written.
        """
        for name in _OF_A_RUN:
            (self.path / name).unlink(missing_ok=True)
        for file in _earlier(self.path):
            file.unlink()
        shutil.rmtree(self.path / BOARD, ignore_errors=True)
        self._save(state, keep=1)

    def count_step(self) -> bool:
        """Counts a step; True if a checkpoint is due."""
        self._steps_since += 1
        is_due = self._steps is not None and self._steps_since >= self._steps
        return is_due or time.monotonic() - self._saved_at >= self._seconds

    def save(self, state: RunState) -> None:
        """Writes the state to `last.pt`; a failure is reported and survived."""
        with surviving():
            self._save(state, self._keep)
        self._saved_at, self._steps_since = time.monotonic(), 0  # after a failure too: it is not tried at every step

    def finish(self, state: RunState) -> None:
        """Writes the last checkpoint of a run.

        Raises:
            OutputError: it cannot be written, or a better one could not be before.
        """
        self._save(state, self._keep)

    def save_best(self, best: Checkpoint) -> None:
        """Writes the best weights; after a failure, a copy waits in memory until they can be written."""
        self._unwritten_best = None
        with surviving():
            try:
                checkpoint.save(self.path / BEST, best)
            except OutputError:
                copies = {name: value.detach().cpu().clone() for name, value in best.weights.items()}
                self._unwritten_best = dataclasses.replace(best, weights=copies)
                raise

    def _save(self, state: RunState, keep: int) -> None:
        if self._unwritten_best:  # first: a run that continues from `last.pt` would not make it again
            checkpoint.save(self.path / BEST, self._unwritten_best)
            self._unwritten_best = None
        checkpoint.save(self.path / LAST, state.checkpoint(), keep)


@contextlib.contextmanager
def surviving() -> Iterator[None]:
    """Reports an output that cannot be written, and goes on."""
    try:
        yield
    except (OutputError, OSError) as error:
        log.warning("%s; training goes on, and what was written before stays", error)


def holds_run(folder: Path) -> bool:
    """True if there is a checkpoint of a run in a folder."""
    return any((folder / name).exists() for name in (LAST, BEST)) or bool(_earlier(folder))


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """Reads the newest checkpoint of a run that is whole; None where there is no run.

    Raises:
        ModelError: there are checkpoints, but none can be read.
    """
    files = [folder / LAST, *_earlier(folder)]
    broken: ModelError | None = None
    for file in files:
        if file.is_file():
            try:
                return checkpoint.load(file)
            except ModelError as error:
                log.warning("%s; looking for an earlier one", error)
                broken = broken or error
    if broken:
        raise broken
    if (folder / BEST).is_file():
        raise InputError(f"{folder}: holds best.pt, but no checkpoint to continue from; use another --output, or --overwrite")
    return None


def _earlier(folder: Path) -> list[Path]:
    """Finds the earlier versions of `last.pt`, the newest first."""
    ages = {file: file.stem.rpartition("-")[2] for file in folder.glob("last-*.pt")}
    return sorted((file for file, age in ages.items() if age.isdigit()), key=lambda file: int(ages[file]))
