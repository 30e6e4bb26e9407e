"""Signals that are held back until a block ends."""

from __future__ import annotations

import signal

import pytest

from runtime.console import signals


def test_the_first_signal_waits_and_the_second_does_not() -> None:
    done = []
    with pytest.raises(signals.Terminated), signals.raised(), signals.held(most=1) as received:  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        done.append(list(received))
        signal.raise_signal(signal.SIGTERM)
        done.append([])
    assert done == [[signal.SIGTERM]]


def test_held_signals_arrive_at_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), signals.raised(), signals.held() as received:  # noqa: PT012
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        done.append(len(received))
    assert done == [3]


@pytest.mark.parametrize(("error", "number"), [(KeyboardInterrupt(), signal.SIGINT), (signals.Terminated(), signal.SIGTERM)])
def test_an_error_tells_its_signal(error: BaseException, number: int) -> None:
    assert signals.number_of(error) == number
