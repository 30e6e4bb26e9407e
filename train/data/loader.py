"""Loads the batches of an epoch in worker processes, in order."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from runtime.errors import DetectorError
from train.data.epoch import SampleIndex, epoch_batches
from train.data.training_set import Batch, TrainingSet


def training_batches(
    training_set: TrainingSet,
    epoch: int,
    batch_size: int,
    sizes: Sequence[int | tuple[int, int]],
    mixup: bool,
    workers: int,
) -> Iterator[Batch]:
    """Makes the batches of one epoch, in order.

    Args:
        training_set: samples to draw from.
        epoch: see `epoch_batches`.
        batch_size: images a batch.
        sizes: see `epoch_batches`.
        mixup: see `epoch_batches`.
        workers: processes that make batches; 0: this one.

    Raises:
        InputError: as `epoch_batches`; while iterating, as `TrainingSet.sample`.
    """
    return _load(training_set, epoch_batches(len(training_set), epoch, training_set.seed, batch_size, sizes, mixup), workers)


def _load(training_set: TrainingSet, batches: list[list[SampleIndex]], workers: int) -> Iterator[Batch]:
    workers = min(workers, len(batches))
    loader: DataLoader[Batch | DetectorError] = DataLoader(
        _Batches(training_set, batches),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_start_worker,
        # Forked workers share the cache and need no pickled copy of the set; other systems cannot fork safely.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # A generator of its own, or the loader would take a number from torch's global one.
        generator=torch.Generator(),
    )
    for batch in _started(loader):
        if isinstance(batch, DetectorError):
            raise batch
        training_set.report(batch.unreadable)
        yield batch


def _started(loader: DataLoader[Batch | DetectorError]) -> Iterator[Batch | DetectorError]:
    """Starts the loader's workers while OpenCV has no thread pool and Ctrl-C waits.

    A pool does not survive a fork: a worker would wait for threads it does not have. Afterwards this process has its
    threads back. An interrupt amid a fork would be lost, since Python ignores errors in its fork hooks.
    """
    if not loader.num_workers:
        return iter(loader)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with _interrupts_held():
            return iter(loader)
    finally:
        cv2.setNumThreads(threads)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C until the end of the block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if held and callable(before):
        before(*held[0])


class _Batches(TorchDataset["Batch | DetectorError"]):
    """Whole batches by their number.

    Errors are returned as values: raised in a worker, the message would be a traceback.
    """

    def __init__(self, training_set: TrainingSet, batches: list[list[SampleIndex]]) -> None:
        self.training_set, self.batches = training_set, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch | DetectorError:
        try:
            return self.training_set.batch(self.batches[number])
        except DetectorError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    """Replaces torch's own collation."""
    return batch


def _start_worker(_: int) -> None:
    """Limits a worker to one thread and leaves Ctrl-C to the main process, which ends the workers in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_unless_parted
    cv2.setNumThreads(1)


def _report_unless_parted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reports an uncaught error, unless Ctrl-C cut the connection while a batch was handed over."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
