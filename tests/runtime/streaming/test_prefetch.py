"""Work done ahead in another thread: order, bound, errors in their place, no thread left."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.streaming.prefetch import batches, flat, prefetch

DELAYS = st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.003]), max_size=12)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def same(item: int) -> int:
    return item


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 5
    while not condition() and time.monotonic() < limit:
        time.sleep(0.001)
    assert condition()


class Counter:
    """Numbers from 0, which knows how many were taken and whether it was closed."""

    def __init__(self, fails_at: int | None = None, delay: float = 0) -> None:
        self.taken, self.closed, self.thread = 0, 0, ""
        self._fails_at, self._delay = fails_at, delay

    def numbers(self) -> Iterator[int]:
        try:
            for number in itertools.count():
                time.sleep(self._delay)
                if number == self._fails_at:
                    raise ValueError("no more")
                self.taken, self.thread = number + 1, threading.current_thread().name
                yield number
        finally:
            self.closed += 1


@given(DELAYS, DELAYS, st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.booleans())
@settings(max_examples=60)
def test_order_is_kept_and_nothing_is_lost(
    slow_source: list[float], slow_use: list[float], depth: int, more: int, size: int, fails: bool
) -> None:
    count = len(slow_source)

    def source() -> Iterator[int]:
        for number, delay in enumerate(slow_source):
            time.sleep(delay)
            yield number
        if fails:
            raise ValueError("no more")

    found: list[int] = []
    try:
        parts = prefetch(batches(prefetch(source(), same, depth), size), lambda part: [item * 2 for item in part], more)
        for item, delay in zip(flat(parts), itertools.chain(slow_use, itertools.repeat(0.0))):
            time.sleep(delay)
            found.append(item)
    except ValueError:
        assert fails
    else:
        assert not fails
    assert found == [number * 2 for number in range(count)]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_slow_user_is_not_run_away_from(depth: int) -> None:
    counter = Counter()
    results = prefetch(counter.numbers(), same, depth)
    for used in range(1, 6):
        next(results)
        wait_for(lambda u=used: counter.taken >= u + depth)  # type: ignore[misc]
        time.sleep(0.005)  # for the other thread to do what it may not
        assert counter.taken == used + depth
    results.close()


def test_source_and_work_are_in_the_other_thread() -> None:
    counter = Counter()
    results = prefetch(counter.numbers(), lambda _: threading.current_thread().name, 1)
    assert counter.taken == 0  # nothing before it is asked for
    assert next(results) == counter.thread == "prefetch"
    results.close()


def test_three_stages_run_at_once() -> None:
    """Each stage waits until all three have an item in hand."""
    together = threading.Barrier(3)

    def meet_at(number: int) -> Callable[[int], int]:
        def work(item: int) -> int:
            if item == number:
                together.wait(timeout=10)
            return item

        return work

    first, second, third = meet_at(6), meet_at(5), meet_at(4)
    for item in prefetch(prefetch(range(9), first, 2), second, 2):
        third(item)
    assert not together.broken


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_of_the_work_comes_in_its_place(kind: type[BaseException]) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise kind("three")
        return item

    counter = Counter()
    results = prefetch(counter.numbers(), work, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(kind, match="three"):
        next(results)
    assert counter.closed == 1


def test_closing_early_closes_the_source() -> None:
    counter = Counter(delay=0.01)
    results = flat(prefetch(batches(prefetch(counter.numbers(), same, 3), 2), same_list, 2))
    assert next(results) == 0
    results.close()
    assert counter.closed == 1
    taken = counter.taken
    time.sleep(0.03)
    assert counter.taken == taken and list(results) == []


def same_list(part: list[int]) -> list[int]:
    return part


def test_letting_go_of_it_closes_it_too() -> None:
    counter = Counter()
    for item in prefetch(counter.numbers(), same, 2):
        if item == 2:
            break
    assert counter.closed == 1


def test_a_source_that_is_no_generator_is_left_as_it_is() -> None:
    numbers = iter(range(100))
    results = prefetch(numbers, same, 1)
    assert [next(results), next(results)] == [0, 1]
    results.close()
    assert next(numbers) in (2, 3)


def test_a_stream_that_was_never_begun() -> None:
    counter = Counter()
    prefetch(counter.numbers(), same, 1).close()
    assert counter.taken == 0


def test_an_unfinished_batch_comes_before_the_error() -> None:
    parts = batches(Counter(fails_at=5).numbers(), 3)
    assert [next(parts), next(parts)] == [[0, 1, 2], [3, 4]]
    with pytest.raises(ValueError, match="no more"):
        next(parts)
