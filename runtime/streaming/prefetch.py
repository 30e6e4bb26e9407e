"""Ordered, bounded prefetching in a thread that ends with its use."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Callable, NamedTuple, Optional, TypeVar, Union

Given = TypeVar("Given")
Made = TypeVar("Made")


class _End(NamedTuple):
    error: Optional[BaseException]


def prefetch(items: Iterable[Given], work: Callable[[Given], Made], depth: int) -> Generator[Made, None, None]:
    """Yields `work` of each item, in order, computed by another thread while earlier results are used.

    An error raised by `items` or `work` is raised in place of its result and ends the stream. Closing the stream early waits
    for the current item alone; `items` is closed too if it is a generator.

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
    is_over = threading.Event()

    def produce() -> None:
        error = None
        try:
            with close_generator(items):
                for item in items:
                    made.put(work(item))
                    slots.acquire()
                    if is_over.is_set():
                        break
        except BaseException as caught:  # whatever it is, the user of the results is the one to know
            error = caught
        made.put(_End(error))

    # A daemon, so that a stream which nobody closed does not keep the interpreter from ending.
    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
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
        is_over.set()
        slots.release()
        thread.join()


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
