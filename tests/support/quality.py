"""Signal-to-noise ratio, by which tests tell rounding from faults."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Outputs = Sequence[NDArray[np.float32]]

_MOST_DB = 300.0


def signal_to_noise(reference: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    """Returns the power of the raw outputs over that of their error in dB, in [-300, 300].

    Each output has the same weight; its power is summed over the images. Outputs that are not finite give -300.
    """
    ratios = []
    for index in range(len(reference[0])):
        signal = sum(float(np.square(outputs[index], dtype=np.float64).sum()) for outputs in reference)
        noise = sum(float(np.square(np.subtract(a[index], b[index], dtype=np.float64)).sum()) for a, b in zip(reference, other))
        ratios.append(noise / max(signal, 1e-300))
    mean = float(np.mean(ratios))
    return -_MOST_DB if not np.isfinite(mean) else float(np.clip(-10 * np.log10(max(mean, 1e-300)), -_MOST_DB, _MOST_DB))
