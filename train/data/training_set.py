"""Makes batches of tensors from a labeled set.

Everything random follows from (seed, epoch, position in the epoch) alone, so a run gives the same batches with any number
of workers and can be resumed at any batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.datasets.dataset import Dataset
from runtime.errors import InputError
from runtime.ops import boxes as box_ops
from runtime.ops.image import Image
from runtime.spec import ModelSpec
from train.data.augment import AugmentConfig, InputFrame, Sample, augment
from train.data.epoch import Purpose, SampleIndex, generator
from train.data.mixup import mixup
from train.losses.packing import Matcher, PackedTargets

log = logging.getLogger(__name__)

CACHE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Batch:
    """A training batch.

    Attributes:
        images: uint8 BGR `[N, H, W, 3]`; `train.data.normalizer` makes the model's input of them, on the device.
        labels: float32 `[N, M, 6]`: class, cx, cy, w, h in input pixels, mixing weight in [0, 1]. M is the most objects of
            one image, at least 1; rows that are all zero are padding.
        sources: the file of each image; two joined by ' + ' with mixup.
        targets: what a `Matcher` made of the labels; None without one.
        unreadable: reason by index of the images that had to be replaced.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sources: list[str]
    targets: PackedTargets | None = None
    unreadable: dict[int, str] = field(default_factory=dict)


class TrainingSet:
    """The images of a split as augmented samples; crowds are left out.

    Attributes:
        dataset: the split.
        spec: of the model; its input size does not matter here, each `SampleIndex` brings its own.
        augment: probabilities and ranges of the augmentation.
        seed: not negative.
        matcher: makes targets of the labels of a batch; None for none.
        unreadable: reason by index of the images found unreadable so far; they are named in the log once and replaced
            by others, chosen by (seed, epoch, position) too.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: ModelSpec,
        augment: AugmentConfig,
        seed: int,
        cache: bool = False,
        *,
        strict: bool = False,
        cache_bytes: int = CACHE_BYTES,
        matcher: Matcher | None = None,
    ) -> None:
        """Checks the set, and decodes it if it is cached.

        Args:
            dataset: the split.
            spec: of the model.
            augment: probabilities and ranges of the augmentation.
            seed: not negative.
            cache: keep the decoded images in memory if all of them fit in `cache_bytes`.
            strict: raise at the first unreadable image instead of replacing it.
            cache_bytes: limit of the cache.
            matcher: makes targets of the labels of a batch; None for none.

        Raises:
            InputError: the set is empty or of another number of classes than the model, the seed is negative, or (with
                `cache` only, as nothing is read before) an image is unreadable under `strict`.
        """
        if not len(dataset):
            raise InputError(f"{dataset.root}: split {dataset.split!r} has no images to train on")
        if len(dataset.class_names) != spec.num_classes:
            raise InputError(f"{dataset.root}: {len(dataset.class_names)} classes, but the model has {spec.num_classes}")
        if seed < 0:
            raise InputError(f"the seed is {seed}, expected 0 or more")
        self.dataset, self.spec, self.augment, self.seed, self.matcher = dataset, spec, augment, seed, matcher
        self.unreadable: dict[int, str] = {}
        self._strict = strict
        self._cache: dict[int, Image] = {}
        if cache:
            self._fill_cache(cache_bytes)

    def __len__(self) -> int:
        return len(self.dataset)

    def source(self, index: int) -> str:
        """Returns the file of an image."""
        return str(self.dataset.images[index].path)

    def sample(self, position: SampleIndex, unreadable: dict[int, str]) -> tuple[Sample, str]:
        """Returns the augmented sample in input pixels and its source; adds unreadable images to `unreadable`.

        Raises:
            InputError: no image of the set can be read, or under `strict` this one cannot.
        """
        rng = self._rng(position, Purpose.SAMPLE)
        frame = InputFrame.of(self.spec, position.size)
        sample, source = self._read_or_replace(position, position.image, Purpose.SUBSTITUTE, unreadable)
        if position.mixup:
            partner = int(rng.integers(len(self)))
            other, other_source = self._read_or_replace(position, partner, Purpose.PARTNER_SUBSTITUTE, unreadable)
            sample = mixup(sample, other, rng, fill=frame.fill)
            source = f"{source} + {other_source}"
        return augment(sample, frame, rng, self.augment), source

    def batch(self, positions: Sequence[SampleIndex], images: NDArray[np.uint8] | None = None) -> Batch:
        """Makes the samples of `positions`, which share one size, into tensors.

        Args:
            positions: of the samples.
            images: uint8 `[N, H, W, 3]` to write the images to; None for memory of its own.

        Raises:
            InputError: as `sample`.
        """
        size = positions[0].size
        if images is None:
            images = np.empty((len(positions), *size, 3), np.uint8)
        samples, sources, unreadable = [], [], dict[int, str]()
        for target, position in zip(images, positions):
            sample, source = self.sample(position, unreadable)
            target[:] = sample.image
            samples.append(sample)
            sources.append(source)
        labels = torch.from_numpy(pack_labels(samples))
        targets = self.matcher(labels, size) if self.matcher else None
        return Batch(torch.from_numpy(images), labels, sources, targets, unreadable)

    def report(self, unreadable: Mapping[int, str]) -> None:
        """Logs images found unreadable, each once, and remembers them so that they are not tried again."""
        for index, reason in unreadable.items():
            if index not in self.unreadable:
                self.unreadable[index] = reason
                log.warning("left out of training: %s", reason)

    def _rng(self, position: SampleIndex, purpose: Purpose) -> np.random.Generator:
        return generator(self.seed, position.epoch, position.position, purpose)

    def _read_or_replace(
        self, position: SampleIndex, index: int, purpose: Purpose, unreadable: dict[int, str]
    ) -> tuple[Sample, str]:
        """Reads image `index`, or the first readable one of an order that depends on the position and `purpose` alone."""
        image = self._read(index, unreadable)
        if image is None:
            # The whole order is gone through, known unreadable ones included: what was found before must not change it.
            for candidate in self._rng(position, purpose).permutation(len(self)).tolist():
                index, image = candidate, self._read(candidate, unreadable)
                if image is not None:
                    break
        if image is None:
            reason = {**self.unreadable, **unreadable}[position.image]
            raise InputError(f"{self.dataset.root}: none of the {len(self)} images of the training split can be read; {reason}")
        record = self.dataset.images[index]
        objects = ~record.crowd
        weights = np.ones(int(objects.sum()), np.float32)
        return Sample(image, record.boxes[objects], record.class_ids[objects], weights), str(record.path)

    def _read(self, index: int, unreadable: dict[int, str]) -> Image | None:
        """Reads an image; None if it cannot be read, the reason then added to `unreadable`."""
        if index in self._cache:
            return self._cache[index]
        if index in self.unreadable or index in unreadable:
            return None
        try:
            return self.dataset.images[index].read()
        except InputError as error:
            if self._strict:
                raise
            unreadable[index] = str(error)
            return None

    def _fill_cache(self, limit: int) -> None:
        """Decodes every image before workers are forked, so that they share the memory."""
        needed = sum(3 * image.width * image.height for image in self.dataset.images)
        if needed > limit:
            log.info(
                "the decoded images need %.1f GiB, more than the %.1f GiB of the cache: not cached",
                needed / 2**30,
                limit / 2**30,
            )
            return
        unreadable: dict[int, str] = {}
        for index in range(len(self)):
            image = self._read(index, unreadable)
            if image is not None:
                self._cache[index] = image
        self.report(unreadable)


def pack_labels(samples: Sequence[Sample]) -> NDArray[np.float32]:
    """Packs the labels of a batch to float32 `[N, M, 6]` as in `Batch`."""
    most = max([1, *(len(sample.boxes) for sample in samples)])
    labels = np.zeros((len(samples), most, 6), np.float32)
    for row, sample in zip(labels, samples):
        count = len(sample.boxes)
        row[:count, 0] = sample.class_ids
        row[:count, 1:5] = box_ops.xyxy_to_cxcywh(sample.boxes)
        row[:count, 5] = sample.weights
    return labels
