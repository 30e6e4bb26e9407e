"""Prepares the batches of a run in worker processes, which stay from epoch to epoch, and yields them in order.

Workers hand images over through `SharedSlots` and everything else through a pipe, never through `/dev/shm`: containers often
give that 64 MB, less than one batch.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data._utils import signal_handling

from runtime.errors import DetectorError, MissingComponentError
from train.data.epoch import SampleIndex, epoch_batches
from train.data.shared_slots import SharedSlots
from train.data.training_set import Batch, TrainingSet
from train.losses.packing import PackedTargets

_AHEAD = 2  # batches that each worker prepares ahead
_MOST_WORKERS = 16
_GRACE = 20  # seconds that a worker lives on after SIGTERM, while the main process comes to its end
_PATIENCE = 600  # seconds without a batch after which the workers count as stuck


def default_workers(device: torch.device) -> int:
    """Returns how many workers suit this machine: a process's share of the cores, most of them left to a CPU that trains."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return min(max(share - 1 if device.type == "cuda" else share // 4, 1), _MOST_WORKERS)


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
    plan = epoch_batches(len(training_set), epoch, training_set.seed, batch_size, sizes, mixup)

    def run() -> Iterator[Batch]:
        with Feed(training_set, workers) as feed:
            yield from feed.batches(plan)

    return run()


class Feed:
    """Prepares batches; a context that ends its workers.

    Args:
        training_set: samples to draw from.
        workers: processes that prepare batches; 0: this one.
        most_pixels: of the largest batch to come; None: of the first epoch's largest.
        most_batches: of a plan to come, which more workers could not share; None: those of the first.
        pinned: hand over batches in pinned memory.

    Raises:
        MissingComponentError: at the end of the context or before, a worker was killed, is stuck or cannot be started.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        workers: int,
        most_pixels: int | None = None,
        most_batches: int | None = None,
        pinned: bool = False,
    ) -> None:
        self._training_set, self._workers, self._most, self._pinned = training_set, workers, most_pixels, pinned
        self._most_batches = most_batches
        self._slots: SharedSlots | None = None
        self._plan = _Plan()
        self._loader: DataLoader[_Handed | DetectorError] | None = None

    def __len__(self) -> int:
        """Number of images of the training set."""
        return len(self._training_set)

    @property
    def workers(self) -> int:
        """Processes that prepare batches; no more than there are batches to share."""
        return self._workers

    def batches(self, plan: Sequence[Sequence[SampleIndex]]) -> Iterator[Batch]:
        """Yields the planned batches, in order.

        Raises:
            InputError: as `TrainingSet.sample`.
        """
        if not self._workers or not plan:
            for positions in plan:
                yield self._report(self._training_set.batch(positions))
            return
        with _faults_explained():
            for handed in self._start(plan):
                yield self._report(self._copy(handed))

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        loader, self._loader = self._loader, None
        running: Any = loader and loader._iterator
        if running:
            _end_workers(running, isinstance(error, _StuckError))  # now: an error's traceback would keep them
        if isinstance(error, RuntimeError):
            with _faults_explained():  # torch says so wherever the main thread is
                raise error

    def _start(self, plan: Sequence[Sequence[SampleIndex]]) -> Iterator[_Handed | DetectorError]:
        if self._loader is None:
            self._workers = min(self._workers, self._most_batches or len(plan))
            self._loader = self._make_loader(plan)
        if self._slots:
            self._slots.reset()
        self._plan.batches = plan
        try:
            return _started(self._loader)
        except OSError as error:
            raise MissingComponentError(
                f"the processes that prepare batches cannot be started ({error.strerror}); free /dev/shm, or use --workers 0"
            ) from error

    def _make_loader(self, plan: Sequence[Sequence[SampleIndex]]) -> DataLoader[_Handed | DetectorError]:
        forks = sys.platform == "linux"  # forked workers share the cache and the slots; other systems cannot fork safely
        if forks:
            planned = max((len(batch) * batch[0].size[0] * batch[0].size[1] for batch in plan if batch), default=1)
            most = max(self._most or 0, planned)
            self._slots = self._plan.slots = SharedSlots(self._workers * _AHEAD + 1, 3 * most)
        return DataLoader(
            _Work(self._training_set, self._slots),
            batch_size=None,
            sampler=self._plan,
            collate_fn=_as_it_is,
            num_workers=self._workers,
            prefetch_factor=_AHEAD,
            persistent_workers=True,
            timeout=_PATIENCE,
            worker_init_fn=_start_worker,
            multiprocessing_context="fork" if forks else None,
            # A generator of its own, or the loader would take a number from torch's global one.
            generator=torch.Generator(),
        )

    def _copy(self, handed: _Handed | DetectorError) -> Batch:
        """Takes a batch out of its slot, which is free then."""
        if isinstance(handed, DetectorError):
            raise handed
        images = handed.images
        if images is None:
            assert self._slots is not None
            images = self._slots.view(handed.slot, handed.shape)
        copied = torch.empty(handed.shape, dtype=torch.uint8, pin_memory=self._pinned)
        copied.numpy()[:] = images
        if handed.images is None and self._slots:
            self._slots.release(handed.slot)
        targets = handed.targets and handed.targets.from_arrays(self._pinned)
        return Batch(copied, torch.from_numpy(handed.labels), handed.sources, targets, handed.unreadable)

    def _report(self, batch: Batch) -> Batch:
        self._training_set.report(batch.unreadable)
        return batch


class _StuckError(MissingComponentError):
    """No worker gave a batch for `_PATIENCE`."""


class _Plan(Sampler[tuple[int, Sequence[SampleIndex]]]):
    """The batches of the current epoch, each with a slot to put it in."""

    def __init__(self) -> None:
        self.batches: Sequence[Sequence[SampleIndex]] = ()
        self.slots: SharedSlots | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, Sequence[SampleIndex]]]:
        for batch in self.batches:
            yield self.slots.take() if self.slots else -1, batch


class _ArrayTargets(NamedTuple):
    """`PackedTargets` in arrays, which go through a pipe; tensors would take a file in `/dev/shm` each."""

    ints: NDArray[np.int64]
    floats: NDArray[np.float32]
    shapes: tuple[tuple[int, ...], ...]
    numbers: tuple[int, ...]

    def from_arrays(self, pinned: bool) -> PackedTargets:
        ints, floats = (torch.from_numpy(x) for x in (self.ints, self.floats))
        if pinned:
            ints, floats = ints.pin_memory(), floats.pin_memory()
        return PackedTargets(ints, floats, self.shapes, self.numbers)


class _Handed(NamedTuple):
    """A batch as a worker hands it over.

    Attributes:
        slot: that holds the images.
        shape: of the images.
        images: themselves, where there are no slots.
        labels: see `Batch`.
        sources: see `Batch`.
        targets: see `Batch`.
        unreadable: see `Batch`.
    """

    slot: int
    shape: tuple[int, ...]
    images: NDArray[np.uint8] | None
    labels: NDArray[np.float32]
    sources: list[str]
    targets: _ArrayTargets | None
    unreadable: dict[int, str]


class _Work(TorchDataset["_Handed | DetectorError"]):
    """Makes whole batches of their plan.

    Errors are returned as values: raised in a worker, the message would be a traceback.
    """

    def __init__(self, training_set: TrainingSet, slots: SharedSlots | None) -> None:
        self.training_set, self.slots = training_set, slots

    def __getitem__(self, planned: tuple[int, Sequence[SampleIndex]]) -> _Handed | DetectorError:
        slot, positions = planned
        shape = (len(positions), *positions[0].size, 3)
        try:
            batch = self.training_set.batch(positions, self.slots.view(slot, shape) if self.slots else None)
        except DetectorError as error:
            return error
        self.training_set.unreadable.update(batch.unreadable)  # this process is the worker's own
        images = None if self.slots else batch.images.numpy()
        targets = None
        if batch.targets:
            targets = _ArrayTargets(batch.targets.ints.numpy(), batch.targets.floats.numpy(), *batch.targets[2:])
        return _Handed(slot, shape, images, batch.labels.numpy(), batch.sources, targets, batch.unreadable)


@contextlib.contextmanager
def _faults_explained() -> Iterator[None]:
    """Raises MissingComponentError in one line where torch reports that a worker is lost or stuck."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader timed out" in str(error):
            raise _StuckError(
                f"no batch came for {_PATIENCE} s: the processes that prepare them are stuck; do the disks or servers that hold"
                " the images answer? PYTHONFAULTHANDLER=1 shows where they wait; continue with --resume"
            ) from error
        if "DataLoader worker" not in str(error):
            raise
        raise MissingComponentError(
            "a process that prepares batches was killed, as systems do when memory is short; lower --workers or --batch"
            f" ({str(error).splitlines()[0][:120]})"
        ) from error


def _started(loader: DataLoader[_Handed | DetectorError]) -> Iterator[_Handed | DetectorError]:
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


def _end_workers(running: Any, stuck: bool) -> None:
    """Kills the workers of torch's iterator.

    Asked to end, a stuck one would not, and one that was killed before may hold the lock of torch's event for ever.
    """
    signal_handling._remove_worker_pids(id(running))  # their end is no fault from here on
    running._worker_pids_set = False
    for worker in running._workers:
        if stuck and worker.is_alive():
            os.kill(worker.pid, signal.SIGABRT)  # a fault handler, where there is one, prints where it waits
            worker.join(1)
        worker.kill()
    running._workers_done_event = threading.Event()
    running._shutdown_workers()


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


def _as_it_is(batch: Any) -> Any:
    """Replaces torch's own collation."""
    return batch


def _start_worker(_: int) -> None:
    """Limits a worker to one thread and leaves signals to the main process, which ends the workers in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # a scheduler's SIGTERM goes to all processes: the main one may still need the batches
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE))
    sys.excepthook = _report_unless_parted
    cv2.setNumThreads(1)


def _report_unless_parted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reports an uncaught error, unless Ctrl-C cut the connection while a batch was handed over."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
