"""Batches: reproducible with any number of workers, labels as promised, unreadable images replaced and counted."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from runtime.datasets.dataset import Dataset, LabeledImage
from runtime.datasets.open import open_dataset
from runtime.errors import InputError
from runtime.ops import preprocess
from runtime.spec import ModelSpec
from train.data.augment import AugmentConfig, Sample
from train.data.epoch import SampleIndex, epoch_batches
from train.data.loader import training_batches
from train.data.normalizer import Normalizer
from train.data.synthetic import make_synthetic
from train.data.training_set import Batch, TrainingSet, pack_labels

OFF = AugmentConfig.none()
SIZES = (96, 128)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(make_synthetic(tmp_path_factory.mktemp("shapes"), train=20, val=1), "train")


@pytest.fixture
def spec(dataset: Dataset) -> ModelSpec:
    return ModelSpec("m", dataset.class_names, (96, 96), (((8.0, 8.0),),) * 3)


def with_unreadable(dataset: Dataset, folder: Path, indices: set[int]) -> Dataset:
    """The set with some images replaced by files that are none."""
    broken = folder / "broken.jpg"
    broken.write_bytes(b"no image")
    images = [dataclasses.replace(image, path=broken) if i in indices else image for i, image in enumerate(dataset.images)]
    return dataclasses.replace(dataset, images=tuple(images))


def epoch(training_set: TrainingSet, workers: int = 0, number: int = 0, mixup: bool = True) -> list[Batch]:
    return list(training_batches(training_set, number, 4, SIZES, mixup, workers))


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.sources == other.sources
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_without_augmentation_batches_are_what_inference_would_see(dataset: Dataset, spec: ModelSpec) -> None:
    training_set = TrainingSet(dataset, spec, OFF, seed=0)
    order = [draw.image for batch in epoch_batches(20, 0, 0, 4, (96,), False) for draw in batch]
    batches = list(training_batches(training_set, 0, 4, (96,), False, 0))
    assert sorted(order) == list(range(20))
    normalizer = Normalizer(spec, torch.device("cpu"))
    for position, index in enumerate(order):
        batch, row = batches[position // 4], position % 4
        record = dataset.images[index]
        expected, geometry = preprocess.preprocess(record.read(), spec)
        np.testing.assert_array_equal(normalizer(batch.images)[row].numpy(), expected)
        assert batch.sources[row] == str(record.path)
        labels = batch.labels[row].numpy()
        labels = labels[labels.any(axis=1)]
        boxes = geometry.to_input(record.boxes[~record.crowd])
        np.testing.assert_array_equal(labels[:, 0], record.class_ids[~record.crowd])
        np.testing.assert_allclose(labels[:, 1:3], (boxes[:, :2] + boxes[:, 2:]) / 2, rtol=1e-5)
        np.testing.assert_allclose(labels[:, 3:5], boxes[:, 2:] - boxes[:, :2], rtol=1e-5)
        assert (labels[:, 5] == 1).all()
    assert any(image.crowd.any() for image in dataset.images)
    assert any(not len(image.boxes) for image in dataset.images)


@pytest.mark.parametrize("mixup", [False, True])
def test_equal_with_any_number_of_workers_and_from_any_batch(dataset: Dataset, spec: ModelSpec, mixup: bool) -> None:
    first = epoch(TrainingSet(dataset, spec, AugmentConfig(), seed=5), 0, mixup=mixup)
    assert_equal(first, epoch(TrainingSet(dataset, spec, AugmentConfig(), seed=5), 2, mixup=mixup))
    resumed, plan = TrainingSet(dataset, spec, AugmentConfig(), seed=5), epoch_batches(len(dataset), 0, 5, 4, SIZES, mixup)
    assert_equal(first[3:], [resumed.batch(batch) for batch in plan[3:]])
    assert_equal(first, epoch(TrainingSet(dataset, spec, AugmentConfig(), seed=5, cache=True), 0, mixup=mixup))


def test_seed_and_epoch_change_the_batches(dataset: Dataset, spec: ModelSpec) -> None:
    first = epoch(TrainingSet(dataset, spec, AugmentConfig(), seed=5))
    assert epoch(TrainingSet(dataset, spec, AugmentConfig(), seed=6))[0].sources != first[0].sources
    assert epoch(TrainingSet(dataset, spec, AugmentConfig(), seed=5), number=1)[0].sources != first[0].sources


def test_the_global_generator_is_left_alone(dataset: Dataset, spec: ModelSpec) -> None:
    before = torch.get_rng_state()
    epoch(TrainingSet(dataset, spec, OFF, seed=0))
    assert torch.equal(before, torch.get_rng_state())


def test_workers_start_after_opencv_has_used_its_threads(dataset: Dataset, spec: ModelSpec) -> None:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1500, 1500))
        assert len(epoch(TrainingSet(dataset, spec, OFF, seed=0), workers=1)) == 5
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(threads)


def test_mixup_joins_sources_and_weighs_boxes(dataset: Dataset, spec: ModelSpec) -> None:
    for batch in epoch(TrainingSet(dataset, spec, OFF, seed=1)):
        for source, labels in zip(batch.sources, batch.labels.numpy()):
            assert source.count(" + ") == 1
            shares = {round(float(weight), 5) for weight in labels[labels.any(axis=1), 5]}
            assert len(shares) <= 2
            assert len(shares) < 2 or sum(shares) == pytest.approx(1, abs=1e-4)


def test_labels_are_padded_with_zero_rows() -> None:
    def sample(count: int) -> Sample:
        image = np.zeros((4, 4, 3), np.uint8)
        boxes = np.tile(np.array([0, 1, 10, 21], np.float32), (count, 1))
        return Sample(image, boxes, np.full(count, 2), np.full(count, 0.25, np.float32))

    labels = pack_labels([sample(0), sample(2), sample(1)])
    assert labels.shape == (3, 2, 6)
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels[1], [[2, 5, 11, 10, 20, 0.25]] * 2)
    assert not labels[0].any()
    assert not labels[2, 1].any()
    assert pack_labels([sample(0)]).shape == (1, 1, 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_named_once_and_counted(
    dataset: Dataset, spec: ModelSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    broken = {1, 4, 7}
    training_set = TrainingSet(with_unreadable(dataset, tmp_path, broken), spec, OFF, seed=2)
    with caplog.at_level(logging.WARNING):
        first = epoch(training_set, workers)
        again = epoch(training_set, workers)
    assert set(training_set.unreadable) == broken
    assert len(caplog.records) == 3
    assert not any("broken" in source for batch in first for source in batch.sources)
    assert_equal(first, again)  # what is known to be unreadable by now does not change the replacements
    assert_equal(first, epoch(TrainingSet(training_set.dataset, spec, OFF, seed=2), 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_raises_at_the_first_unreadable_image(dataset: Dataset, spec: ModelSpec, tmp_path: Path, workers: int) -> None:
    training_set = TrainingSet(with_unreadable(dataset, tmp_path, {3}), spec, OFF, seed=0, strict=True)
    with pytest.raises(InputError, match=r"broken\.jpg: not an image that can be decoded$"):
        epoch(training_set, workers)


@pytest.mark.parametrize("cache", [False, True])
def test_all_unreadable_raises(dataset: Dataset, spec: ModelSpec, tmp_path: Path, cache: bool) -> None:
    training_set = TrainingSet(with_unreadable(dataset, tmp_path, set(range(20))), spec, OFF, seed=0, cache=cache)
    with pytest.raises(InputError, match="none of the 20 images"):
        epoch(training_set)


def test_a_cache_saves_reading_and_keeps_to_its_budget(
    dataset: Dataset, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = LabeledImage.read
    monkeypatch.setattr(LabeledImage, "read", lambda self: (reads.append(self.image_id), read(self))[1])
    cached = TrainingSet(dataset, spec, OFF, seed=0, cache=True)
    epoch(cached)
    assert len(reads) == 20
    epoch(TrainingSet(dataset, spec, OFF, seed=0, cache=True, cache_bytes=1000), mixup=False)
    assert len(reads) == 40


def test_a_size_is_drawn_every_ten_batches_and_all_occur() -> None:
    sizes = tuple(range(320, 609, 32))
    batches = epoch_batches(900, 0, 1, 2, sizes, mixup=True)
    drawn = [{draw.size for draw in batch} for batch in batches]
    assert all(len(frames) == 1 for frames in drawn)
    runs = [drawn[i : i + 10] for i in range(0, 450, 10)]
    assert all(run.count(run[0]) == len(run) for run in runs)
    assert {frame[0] for frames in drawn for frame in frames} == set(sizes)
    assert all(draw.mixup for batch in batches for draw in batch)


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [(10, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (1, 1, [1])],  # a partial batch stays only where it is alone
)
def test_partial_batches(count: int, batch_size: int, expected: list[int]) -> None:
    batches = epoch_batches(count, 0, 0, batch_size, (64,), False)
    assert [len(batch) for batch in batches] == expected
    draws = [draw for batch in batches for draw in batch]
    assert [draw.position for draw in draws] == list(range(len(draws)))
    assert len({draw.image for draw in draws}) == len(draws)


def test_sizes_may_be_rectangles(dataset: Dataset, spec: ModelSpec) -> None:
    batch = TrainingSet(dataset, spec, OFF, seed=0).batch([SampleIndex(0, 0, 0, (64, 96), False)])
    assert batch.images.shape == (1, 64, 96, 3)
    assert epoch_batches(1, 0, 0, 1, ((64, 96),), False)[0][0].size == (64, 96)


@pytest.mark.parametrize("arguments", [(0, 4, (64,)), (4, 0, (64,)), (4, 4, ()), (4, 4, (0,))])
def test_bad_epochs_are_refused(arguments: tuple[int, int, tuple[int, ...]]) -> None:
    count, batch_size, sizes = arguments
    with pytest.raises(InputError):
        epoch_batches(count, 0, 0, batch_size, sizes, False)


def test_a_set_that_does_not_fit_the_model_is_refused(dataset: Dataset, spec: ModelSpec) -> None:
    with pytest.raises(InputError, match="4 classes, but the model has 1"):
        TrainingSet(dataset, spec.replace(class_names=("a",)), OFF, seed=0)
    with pytest.raises(InputError, match="no images"):
        TrainingSet(dataclasses.replace(dataset, images=()), spec, OFF, seed=0)
    with pytest.raises(InputError, match="seed"):
        TrainingSet(dataset, spec, OFF, seed=-1)


_INTERRUPTED = """
import sys
from runtime.datasets.open import open_dataset
from runtime.spec import ModelSpec
from train.data import AugmentConfig, TrainingSet, training_batches
data = open_dataset(sys.argv[1], "train")
spec = ModelSpec("m", data.class_names, (96, 96), (((8.0, 8.0),),) * 3)
training_set = TrainingSet(data, spec, AugmentConfig(), 0)
try:
    for epoch in range(10**6):
        for batch in training_batches(training_set, epoch, 2, (96,), True, 2):
            print("batch", flush=True)
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals a process group")
def test_ctrl_c_ends_quietly(dataset: Dataset) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(dataset.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n"
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, errors) == (7, "")
