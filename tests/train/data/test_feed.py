"""Workers: they stay from epoch to epoch, need no room in /dev/shm, and a lost one ends the run in one line."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset
from runtime.errors import MissingComponentError
from runtime.spec import ModelSpec
from tests.support.small_models import tiny
from train.data import processes
from train.data.augment import AugmentConfig
from train.data.epoch import SampleIndex, epoch_batches
from train.data.loader import Feed, default_workers, training_batches
from train.data.shared_slots import SharedSlots
from train.data.synthetic import make_synthetic
from train.data.training_set import Batch, TrainingSet
from train.model import build_model

linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(make_synthetic(tmp_path_factory.mktemp("shapes"), train=20, val=1), "train")


@pytest.fixture
def training_set(dataset: Dataset) -> TrainingSet:
    config = tiny()
    spec = ModelSpec("m", dataset.class_names, (96, 96), (((8.0, 8.0),),) * 3)
    matcher = build_model(config.model, len(dataset.class_names), config.loss).matcher
    return TrainingSet(dataset, spec, AugmentConfig(), seed=3, matcher=matcher)


def plan(epoch: int, *sizes: int, batch: int = 4) -> list[list[SampleIndex]]:
    return epoch_batches(20, epoch, 3, batch, sizes or (96,), True)


def worker_ids(feed: Feed) -> list[int]:
    assert feed._loader is not None
    return [worker.pid for worker in feed._loader._iterator._workers]  # type: ignore[union-attr]


def test_workers_stay_and_give_the_batches_of_one_process(training_set: TrainingSet) -> None:
    """Over three epochs, the second left in its middle and the third at another size."""
    seen = []
    with Feed(training_set, 2, most_pixels=4 * 128 * 128) as feed, Feed(training_set, 0) as alone:
        for epoch, size, stop in ((0, 96, 9), (1, 96, 2), (2, 128, 9)):
            batches = feed.batches(plan(epoch, size))
            for number, (made, want) in enumerate(zip(batches, alone.batches(plan(epoch, size)))):
                assert torch.equal(made.images, want.images)
                assert torch.equal(made.labels, want.labels)
                assert made.sources == want.sources
                assert made.targets is not None and want.targets is not None
                assert torch.equal(made.targets.ints, want.targets.ints)
                assert torch.equal(made.targets.floats, want.targets.floats)
                assert made.targets[2:] == want.targets[2:]
                if number == stop:
                    break
            seen.append(worker_ids(feed))
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0])) == 2
    assert not any(Path(f"/proc/{number}").exists() for number in seen[0])


def test_what_is_left_of_an_epoch_does_not_bound_the_workers(training_set: TrainingSet) -> None:
    whole = plan(0, 96)
    with Feed(training_set, 2, most_batches=len(whole)) as feed:
        assert list(feed.batches([])) == []  # resumed for its evaluation
        assert len(list(feed.batches(whole[-1:]))) == 1
        assert len(worker_ids(feed)) == feed.workers == 2


@linux
def test_batches_larger_than_any_file_may_be_are_handed_over(training_set: TrainingSet) -> None:
    """No file can grow here at all, in /dev/shm least of all: what a worker hands over takes none."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Feed(training_set, 2) as feed:
            batches: Iterator[Batch] = feed.batches(plan(0, 608))
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # a semaphore takes 32 bytes
            assert sum(len(batch.images) for batch in batches) == 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@linux
def test_a_full_shm_is_one_line(training_set: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processes, "start", full)
    with (
        pytest.raises(MissingComponentError, match=r"No space left on device\); free /dev/shm, or use --workers 0$"),
        Feed(training_set, 1) as feed,
    ):
        next(iter(feed.batches(plan(0))))


@linux
@pytest.mark.parametrize("where", ["waiting", "computing"])
def test_a_killed_worker_ends_the_run_in_one_line(training_set: TrainingSet, where: str) -> None:
    start = time.monotonic()
    expected = r"^a process that prepares batches was killed, .*; lower --workers or --batch \(DataLoader worker .*\)$"
    with pytest.raises(MissingComponentError, match=expected), Feed(training_set, 1) as feed:  # noqa: PT012
        for number, _ in enumerate(feed.batches(plan(0, batch=1))):
            if number == 1:
                os.kill(worker_ids(feed)[0], signal.SIGKILL)
                if where == "computing":  # torch raises wherever the main thread is
                    time.sleep(10)
    assert time.monotonic() - start < 25


@linux
def test_a_killed_worker_takes_no_lock_along(training_set: TrainingSet) -> None:
    with Feed(training_set, 1) as feed:
        next(feed.batches(plan(0)))
        assert feed._loader is not None
        feed._loader._iterator._workers_done_event._cond.acquire()  # type: ignore[union-attr]  # by a worker that is killed now
        worker = worker_ids(feed)[0]
    assert not Path(f"/proc/{worker}").exists()


@linux
def test_a_stuck_worker_ends_the_run_in_one_line(training_set: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 1)
    expected = r"^no batch came for 1 s: the processes that prepare them are stuck; .*; continue with --resume$"
    with pytest.raises(MissingComponentError, match=expected), Feed(training_set, 1) as feed:  # noqa: PT012
        for number, _ in enumerate(feed.batches(plan(0, batch=1))):
            if number == 1:
                worker = worker_ids(feed)[0]
                os.kill(worker, signal.SIGSTOP)
    assert not Path(f"/proc/{worker}").exists()


@linux
def test_workers_leave_alone_what_they_inherit(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder in a reference cycle: freed in a worker, it would wait for threads that this process alone has."""
    video, start = tmp_path / "a.avi", processes.prepare
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 64))
    for _ in range(3):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()

    def start_and_collect(number: int) -> None:
        start(number)
        gc.collect()

    monkeypatch.setattr(processes, "prepare", start_and_collect)
    monkeypatch.setattr(processes, "PATIENCE", 10)
    gc.disable()
    try:
        decoder = cv2.VideoCapture(str(video))
        assert decoder.read()[0]
        cycle: list[object] = [decoder]
        cycle.append(cycle)
        del decoder, cycle
        assert sum(len(batch.images) for batch in training_batches(training_set, 0, 4, (96,), True, 1)) == 20
    finally:
        gc.enable()
    assert not gc.get_freeze_count()


def test_slots_are_handed_out_and_come_back() -> None:
    slots = SharedSlots(2, 12)
    first, second = slots.take(), slots.take()
    slots.view(first, (2, 2, 3))[:] = 7
    slots.view(second, (1, 2, 3))[:] = 9
    assert slots.view(first, (12,)).tolist() == [7] * 12
    with pytest.raises(IndexError):
        slots.take()
    slots.release(first)
    assert slots.take() == first
    with pytest.raises(ValueError, match="does not fit"):
        slots.view(first, (5, 3))


def test_memory_that_cannot_be_had_is_one_line() -> None:
    with pytest.raises(MissingComponentError, match=r"lower --workers or --batch$"):
        SharedSlots(4, 1 << 50)


@pytest.mark.parametrize(
    ("cores", "ranks", "device", "expected"),
    [
        (1, "1", "cpu", 1),
        (2, "1", "cpu", 1),
        (16, "1", "cpu", 4),
        (16, "1", "cuda", 15),
        (128, "8", "cuda", 15),
        (128, "1", "cuda", 16),
    ],
)
def test_workers_by_the_cores(cores: int, ranks: str, device: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert default_workers(torch.device(device)) == expected
