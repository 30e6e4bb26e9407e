"""Prepares the batches of a run in worker processes, which stay from epoch to epoch, and yields them in order.

Workers hand images over through `SharedSlots` and everything else through a pipe, never through `/dev/shm`: containers often
give that 64 MB, less than one batch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from runtime.errors import DetectorError, MissingComponentError
from train.data import processes
from train.data.epoch import SampleIndex, epoch_batches
from train.data.shared_slots import SharedSlots
from train.data.training_set import Batch, TrainingSet
from train.losses.packing import PackedTargets

_AHEAD = 2  # batches that each worker prepares ahead
_MOST_WORKERS = 16


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
        with processes.faults_explained():
            for handed in self._start(plan):
                yield self._report(self._copy(handed))

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        loader, self._loader = self._loader, None
        running: Any = loader and loader._iterator
        if running:
            processes.end(running, error)  # now: an error's traceback would keep them
        if isinstance(error, RuntimeError):
            with processes.faults_explained():  # torch says so wherever the main thread is
                raise error

    def _start(self, plan: Sequence[Sequence[SampleIndex]]) -> Iterator[_Handed | DetectorError]:
        if self._loader is None:
            self._workers = min(self._workers, self._most_batches or len(plan))
            self._loader = self._make_loader(plan)
        if self._slots:
            self._slots.reset()
        self._plan.batches = plan
        try:
            return processes.start(self._loader)
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
            timeout=processes.PATIENCE,
            worker_init_fn=processes.prepare,
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


def _as_it_is(batch: Any) -> Any:
    """Replaces torch's own collation."""
    return batch
