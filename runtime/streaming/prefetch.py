"""Ordered, bounded prefetching in a thread that ends with its use."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Callable, NamedTuple, Optional, TypeVar, Union

from runtime.console.exits import run_first

Given = TypeVar("Given")
Made = TypeVar("Made")


class _End(NamedTuple):
    error: Optional[BaseException]


_LONGEST_EXIT = 10.0  # seconds; a source that never answers must not keep the interpreter from ending
_running: set[_Producer] = set()


class _Producer:
    """The thread of a `prefetch`, which the end of the interpreter ends too.

    A thread that is inside a library when the interpreter goes down aborts the process. It is a daemon all the same, so that
    a stream in the main thread which nobody closed does not keep the interpreter from ending.
    """

    def __init__(self, produce: Callable[[], None], slots: threading.Semaphore) -> None:
        self.is_over = threading.Event()
        self._slots, self._is_given_up = slots, False
        self._thread = threading.Thread(target=produce, name="prefetch", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        _running.add(self)
        run_first(_end_all)
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end after its current item."""
        self.is_over.set()
        self._slots.release()

    def join(self, deadline: Optional[float] = None) -> None:
        """Waits for the end of the thread, until `deadline` (`time.monotonic`) at most; then it is given up."""
        if self._is_given_up:
            return
        self._thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))
        self._is_given_up = self._thread.is_alive()
        _running.discard(self)


def _end_all() -> None:
    """Ends the streams that nobody closed, while their threads can still run."""
    deadline = time.monotonic() + _LONGEST_EXIT
    producers = list(_running)
    for producer in producers:  # all before the first is waited for: they wait for each other
        producer.stop()
    for producer in producers:
        producer.join(deadline)


def prefetch(items: Iterable[Given], work: Callable[[Given], Made], depth: int) -> Generator[Made, None, None]:
    """Yields `work` of each item, in order, computed by another thread while earlier results are used.

    An error raised by `items` or `work` is raised in place of its result and ends the stream. Closing the stream early waits
    for the current item alone; `items` is closed too if it is a generator. The end of the interpreter closes it.

    Args:
        items: read by the other thread.
        work: called by the other thread, once an item.
        depth: largest number of results that are waiting or in progress, at least 1.

    Example:
        >>> list(prefetch(["a", "b"], str.upper, depth=2))
        ['A', 'B']
    """
    made: queue.SimpleQueue[Union[Made, _End]] = queue.SimpleQueue()
    slots = threading.Semaphore(depth - 1)  # the first item needs none

    def produce() -> None:
        error = None
        try:
            with close_generator(items):
                for item in items:
                    made.put(work(item))
                    slots.acquire()
                    if producer.is_over.is_set():
                        break
        except BaseException as caught:  # whatever it is, the user of the results is the one to know
            error = caught
        made.put(_End(error))

    producer = _Producer(produce, slots)
    producer.start()
    try:
        while True:
            result = made.get()
            if isinstance(result, _End):
                if result.error is not None:
                    raise result.error
                return
            slots.release()
            yield result
    finally:
        producer.stop()
        producer.join()


def batches(items: Iterable[Given], size: int) -> Generator[list[Given], None, None]:
    """Groups items into lists of `size`, the last one shorter; items before an error are yielded before it is raised.

    Example:
        >>> list(batches("abcde", 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    part: list[Given] = []
    with close_generator(items):
        try:
            for item in items:
                part.append(item)
                if len(part) == size:
                    yield part
                    part = []
        except Exception:
            if part:
                yield part
            raise
        if part:
            yield part


def flat(parts: Iterable[Iterable[Given]]) -> Generator[Given, None, None]:
    """Yields the items of each part, in order."""
    with close_generator(parts):
        for part in parts:
            yield from part


@contextlib.contextmanager
def close_generator(items: object) -> Iterator[None]:
    """Closes `items` at the end of the block if it is a generator, which may hold a file or a thread."""
    try:
        yield
    finally:
        if isinstance(items, Generator):
            items.close()
