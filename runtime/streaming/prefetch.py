"""Work ahead in another thread: the order kept, never more than a few things waiting, every thread ended with its use."""

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
    """`work` of each item, in order, done by another thread while the results before it are used.

    An error of `items` or `work` is raised where its result would have come, and ends the stream. Closing it early, or letting
    go of it, waits for the item that is being worked on and no other; `items` is closed too if it is a generator.

    Args:
        depth: results that may wait or be in the making, at least 1.

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
    """Lists of `size` items, the last one of fewer; those before an error are given before it is raised.

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
    """The items of each part, in order."""
    with close_generator(parts):
        for part in parts:
            yield from part


@contextlib.contextmanager
def close_generator(items: object) -> Iterator[None]:
    """Close `items` after use if it is a generator, now rather than when it is collected: it may hold a file or a thread."""
    try:
        yield
    finally:
        if isinstance(items, Generator):
            items.close()
