"""Times exported files against the FP32 file they come from, in alternating rounds on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from runtime.backends.base import Backend
from runtime.benchmark.timing import interleave, milliseconds
from runtime.detector import Detector
from runtime.ops.image import Image

_ROUNDS, _WARM_UP = 30, 3


@dataclass(frozen=True)
class Speedup:
    """Time of the FP32 file divided by that of a file, image to boxes, batch 1; above 1 the file is faster.

    Attributes:
        ratio: median of the rounds.
        low: 5th percentile.
        high: 95th percentile.
    """

    ratio: float
    low: float
    high: float


def measure_speedup(reference: Backend, others: Mapping[str, Backend], image: Image) -> dict[str, Speedup]:
    """Times the backends in turn on one image.

    Args:
        reference: the FP32 file.
        others: the files to time, by name.
        image: what they run on.

    Returns:
        The speedup of each file, by name.
    """
    detectors = {name: Detector(backend) for name, backend in others.items()}
    ways = {name: lambda _, run=detector: milliseconds(lambda: run(image)) for name, detector in detectors.items()}
    base = Detector(reference)
    times = interleave({"": lambda _: milliseconds(lambda: base(image)), **ways}, _ROUNDS, _WARM_UP)
    ratios = {name: np.array(times[""]) / np.array(times[name]) for name in others}
    return {name: Speedup(*(float(value) for value in np.percentile(found, [50, 5, 95]))) for name, found in ratios.items()}
