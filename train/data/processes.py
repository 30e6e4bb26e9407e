"""Starts, prepares and ends the processes that a torch `DataLoader` has prepare batches, and explains their faults."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypeVar

import cv2
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from runtime.errors import MissingComponentError

PATIENCE = 600
"""Seconds without a batch after which the workers count as stuck."""

_GRACE = 20  # seconds that a worker lives on after SIGTERM, while the main process comes to its end

_Item = TypeVar("_Item")


class _StuckError(MissingComponentError):
    """No worker gave a batch for `PATIENCE`."""


def start(loader: DataLoader[_Item]) -> Iterator[_Item]:
    """Starts the loader's workers while OpenCV has no thread pool, garbage is frozen and Ctrl-C waits.

    Threads do not survive a fork: a worker that used OpenCV's, or whose garbage collector freed a video's decoder, would
    wait for them for ever. So a worker never collects what it inherits. Afterwards this process has its threads back.
    An interrupt amid a fork would be lost, since Python ignores errors in its fork hooks.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    gc.freeze()
    try:
        with _interrupts_held():
            return iter(loader)
    finally:
        gc.unfreeze()
        cv2.setNumThreads(threads)


def prepare(_: int) -> None:
    """Limits a worker to one thread and leaves signals to the main process, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # a scheduler's SIGTERM goes to all processes: the main one may still need the batches
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE))
    cv2.setNumThreads(1)


def end(running: Any, error: BaseException | None) -> None:
    """Kills the workers of a loader.

    Asked to end, a stuck one would not, and one that was killed before may hold the lock of torch's event for ever.

    Args:
        running: torch's iterator, which has the workers.
        error: that ends the run, if any.
    """
    signal_handling._remove_worker_pids(id(running))  # their end is no fault from here on
    running._worker_pids_set = False
    for worker in running._workers:
        if isinstance(error, _StuckError) and worker.is_alive():
            os.kill(worker.pid, signal.SIGABRT)  # a fault handler, where there is one, prints where it waits
            worker.join(1)
        worker.kill()
    running._workers_done_event = threading.Event()
    running._shutdown_workers()


@contextlib.contextmanager
def faults_explained() -> Iterator[None]:
    """Raises MissingComponentError, in one line, where torch reports in the block that a worker is lost or stuck."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader timed out" in str(error):
            raise _StuckError(
                f"no batch came for {PATIENCE} s: the processes that prepare them are stuck; do the disks or servers that hold"
                " the images answer? PYTHONFAULTHANDLER=1 shows where they wait; continue with --resume"
            ) from error
        if "DataLoader worker" not in str(error):
            raise
        raise MissingComponentError(
            "a process that prepares batches was killed, as systems do when memory is short; lower --workers or --batch"
            f" ({str(error).splitlines()[0][:120]})"
        ) from error


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
