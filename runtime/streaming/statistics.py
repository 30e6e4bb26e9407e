"""Counts what a `Detector` did, and the time of its stages."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Optional


class RunStatistics:
    """Counts images and detections, and adds up the time of stages. Thread-safe.

    Attributes:
        images: number of images or frames so far.
        detections: number of detections in them.
        best_score: highest score of any box so far in [0, 1], while nothing was found; None before the first image and once
            something was found.

    Example:
        >>> statistics = RunStatistics()
        >>> with statistics.time("read"):
        ...     pass
        >>> statistics.count([2, 0])
        >>> statistics.images, statistics.detections, list(statistics.milliseconds())
        (2, 2, ['read'])
    """

    def __init__(self) -> None:
        self.images = self.detections = 0
        self.best_score: Optional[float] = None
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - start

    def count(self, found: list[int]) -> None:
        """Counts images, given the number of detections in each."""
        with self._lock:
            self.images += len(found)
            self.detections += sum(found)
            if self.detections:
                self.best_score = None

    def see(self, score: float) -> None:
        """Notes the highest score of an image in which nothing was found."""
        with self._lock:
            if not self.detections:
                self.best_score = max(score, self.best_score or 0.0)

    def milliseconds(self) -> dict[str, float]:
        """Returns the mean time of each stage per image; stages run side by side, so that their sum is no elapsed time."""
        with self._lock:
            return {stage: 1e3 * seconds / max(self.images, 1) for stage, seconds in self._seconds.items()}

    def summary(self, threshold: float, dropped: int = 0) -> str:
        """Returns one line: what was found, or how near it came, and the time of each stage.

        Args:
            threshold: lowest score of a detection, in [0, 1].
            dropped: frames that there was no time for.
        """
        line = f"{_count(self.images, 'image')}, {_count(self.detections, 'detection')}"
        if dropped:
            line += f", {_count(dropped, 'frame')} dropped to keep up"
        if self.best_score is not None:
            line += f"; nothing found: the best score is {self.best_score:.3g}, below {threshold:.3g}"
        times = ", ".join(f"{stage} {value:.1f}" for stage, value in self.milliseconds().items())
        return f"{line}; ms per image: {times}" if times else line


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
