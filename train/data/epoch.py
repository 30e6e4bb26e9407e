"""Plans one epoch: the order of the images and the input sizes, all from the seed and the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from runtime.errors import InputError

RESIZE_EVERY = 10
"""Batches of one input size."""


class Purpose(IntEnum):
    """Purposes of random generators."""

    SAMPLE = 0
    ORDER = 1
    SIZES = 2
    SUBSTITUTE = 3
    PARTNER_SUBSTITUTE = 4
    NETWORK = 5


def generator(seed: int, epoch: int, position: int, purpose: Purpose) -> np.random.Generator:
    """Returns the random generator for `purpose` at a position of an epoch.

    All four numbers are always given: NumPy takes [seed, epoch] and [seed, epoch, 0] for the same seed.
    """
    return np.random.default_rng([seed, epoch, position, int(purpose)])


class SampleIndex(NamedTuple):
    """Position of one sample in an epoch.

    Attributes:
        epoch: counts from 0.
        position: in the epoch, counts from 0; with the seed and the epoch it fixes everything random about the sample.
        image: index in the set.
        size: (height, width) of the network's input in pixels.
        mixup: True if a second image is mixed in.
    """

    epoch: int
    position: int
    image: int
    size: tuple[int, int]
    mixup: bool


def shared_batches(
    batches: Sequence[Sequence[SampleIndex]], rank: int = 0, size: int = 1, parts: int = 1
) -> list[Sequence[SampleIndex]]:
    """Takes one rank's share of each planned batch, every `size`-th image from number `rank` on, in `parts` as even as can be.

    Returns:
        The parts of all batches, one after the other.
    """
    shares = [batch[rank::size] for batch in batches]
    return [share[part * len(share) // parts : (part + 1) * len(share) // parts] for share in shares for part in range(parts)]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Returns the number of batches in which an epoch takes so many images."""
    return max(count // batch_size, 1)


def epoch_batches(
    count: int,
    epoch: int,
    seed: int,
    batch_size: int,
    sizes: Sequence[int | tuple[int, int]],
    mixup: bool,
) -> list[list[SampleIndex]]:
    """Plans the shuffled batches of one epoch; the input size changes every `RESIZE_EVERY` batches (training recipe).

    Args:
        count: images in the set; each occurs once, less those of a last partial batch,
            which is dropped unless it is the only one.
        epoch: counts from 0.
        batch_size: images a batch.
        sizes: sides in pixels, or (height, width) pairs, to draw from.
        mixup: mix a second image into each sample.
        seed: of the order and the sizes.

    Raises:
        InputError: nothing to draw from, or a count or size that is not positive.
    """
    if min(count, batch_size) < 1 or not sizes:
        raise InputError("a training epoch needs at least one image, a batch size of at least 1 and one input size")
    frames = [(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])) for size in sizes]
    if min(min(frame) for frame in frames) < 1:
        raise InputError(f"the input sizes are {list(sizes)}, expected positive numbers of pixels")
    order = generator(seed, epoch, 0, Purpose.ORDER).permutation(count).tolist()
    batches = steps_per_epoch(count, batch_size)
    changes = -(-batches // RESIZE_EVERY)
    drawn = generator(seed, epoch, 0, Purpose.SIZES).integers(len(frames), size=changes).tolist()
    return [
        [
            SampleIndex(epoch, position, order[position], frames[drawn[number // RESIZE_EVERY]], mixup)
            for position in range(number * batch_size, min((number + 1) * batch_size, count))
        ]
        for number in range(batches)
    ]
