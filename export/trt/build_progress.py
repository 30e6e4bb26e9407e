"""Runs an engine build in a thread, with a progress bar, so that Ctrl-C can cancel it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm


class BuildProgress:
    """Progress of a build with nested phases.

    A `BuildObserver`: the builder's threads report to it, and another thread reads it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}  # the running ones, outermost first
        self._canceled = False

    def started(self, phase: str, parent: str, steps: int) -> None:
        """See `BuildObserver.started`."""
        with self._lock:
            self._phases[phase] = _Phase(parent, max(steps, 1))

    def stepped(self, phase: str, step: int) -> bool:
        """See `BuildObserver.stepped`."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = step + 1
            return not self._canceled

    def finished(self, phase: str) -> None:
        """See `BuildObserver.finished`."""
        with self._lock:
            self._phases.pop(phase, None)

    def cancel(self) -> None:
        """Makes the builder stop at its next step."""
        self._canceled = True

    def read(self) -> tuple[str, float]:
        """Returns the innermost running phase, and the share of the whole build that is done, in [0, 1]."""
        with self._lock:
            return next(reversed(self._phases), ""), min(self._share(""), 1.0)

    def _share(self, parent: str) -> float:
        """Returns the share of `parent` that is done."""
        return sum(
            min(phase.done + self._share(name), phase.steps) / phase.steps
            for name, phase in self._phases.items()
            if phase.parent == parent
        )


@dataclass
class _Phase:
    parent: str
    steps: int
    done: int = 0


def run_with_progress(build: Callable[[], bytes], progress: BuildProgress) -> bytes:
    """Runs `build` in a thread and shows its progress on a terminal.

    A thread, because Python handles Ctrl-C only while it runs Python code, not while the builder runs.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the builder has stopped.
        Exception: whatever `build` raises.
    """
    outcome: list[bytes | BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(build())
        except BaseException as error:  # raised again below, in the waiting thread
            outcome.append(error)
        done.set()

    threading.Thread(target=run, name="engine builder").start()
    with tqdm(
        total=100, unit="%", disable=None, leave=False, bar_format="{desc:32.32}{percentage:3.0f}%|{bar}| {elapsed}"
    ) as bar:
        try:
            # An event, not Thread.join: after an interrupted join, Python 3.11 takes the thread for ended.
            while not done.wait(0.1):
                phase, share = progress.read()
                bar.set_description_str(phase, refresh=False)
                bar.update(max(0, int(100 * share) - bar.n))
        except KeyboardInterrupt:
            progress.cancel()
            done.wait()
            raise
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result
