"""Turns are fair, and a spread says no more than its values tell."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.benchmark import timing
from runtime.benchmark.timing import ends, interleave, milliseconds, spread


def test_every_way_comes_once_a_round_and_first_every_other_time() -> None:
    calls: list[tuple[str, int]] = []

    def way(name: str, turn: int) -> str:
        calls.append((name, turn))
        return f"{name}{turn}"

    found = interleave({name: lambda turn, name=name: way(name, turn) for name in "abc"}, rounds=2, warm_up=1)
    order = [[name for name, turn in calls if turn == wanted] for wanted in range(3)]
    assert order == [list("abc"), list("cba"), list("abc")]
    assert found == {"a": ["a1", "a2"], "b": ["b1", "b2"], "c": ["c1", "c2"]}


def test_milliseconds_are_a_thousandth_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.25])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert milliseconds(lambda: None) == pytest.approx(250)


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (1, ["min", "median", "max"]),
        (19, ["min", "median", "max"]),
        (20, ["min", "p5", "median", "p95", "max"]),
        (99, ["min", "p5", "median", "p95", "max"]),
        (100, ["min", "p5", "median", "p95", "p99", "max"]),
    ],
)
def test_a_percentile_is_told_if_a_value_lies_beyond_it(count: int, names: list[str]) -> None:
    values = np.random.default_rng(0).permutation(count) * 2.0
    found = spread(values.tolist())
    assert list(found) == names
    assert list(found.values()) == sorted(found.values())
    assert (found["min"], found["median"], found["max"]) == (0, count - 1, 2 * count - 2)
    for name in names:
        if name.startswith("p"):
            beyond = values < found[name] if name == "p5" else values > found[name]
            assert 1 <= beyond.sum() <= count * 0.05 + 1
    assert ends(found) == (("p5", "p95") if count >= 20 else ("min", "max"))
