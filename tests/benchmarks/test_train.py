"""The training benchmark times the loop that trains, and its parts make up the step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import step_clock
from benchmarks import train as benchmark
from benchmarks.step_clock import PARTS, StepClock
from runtime.errors import InputError
from tests.support.detect_command import Command
from tests.support.small_models import tiny
from train.data.loader import Feed
from train.run.step import Stepper

BATCH, STEPS = 2, 3


@pytest.fixture(autouse=True)
def small_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "recipe", lambda name: tiny().replace(recipe=name, batch=BATCH, size=64, sizes=(64,)))


def run(command: Command, output: Path, *options: object) -> tuple[int, str, dict[str, Any]]:
    code, out, _ = command(benchmark.main, "--steps", STEPS, "--workers", 0, "--output", output, *options)
    return code, out, json.loads(output.read_text())


@pytest.mark.parametrize("options", [(), ("--ema", "--workers", "1")], ids=["plain", "averaged, with a worker"])
def test_parts_make_up_the_step(options: tuple[str, ...], command: Command, coco_set: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "train.json"
    output.parent.mkdir()
    code, out, found = run(command, output, "--data", coco_set, "--recipe", "one", "two", *options)
    assert code == 0 and len(out.splitlines()) == 3  # a head and two rows
    assert found["machine"]["torch"] == torch.__version__
    assert [(row["recipe"], row["size"], row["batch"]) for row in found["results"]] == [("one", 64, 2), ("two", 64, 2)]
    for row in found["results"]:
        assert list(row["parts_ms"]) == list(PARTS) and all(value > 0 for value in row["parts_ms"].values())
        assert row["parts_ms"]["forward"] < row["step_ms"]["max"]
        assert (
            0 < row["waiting"] < 1 and row["loader_images_per_second"] > 0 and row["checkpoint_bytes"] > row["gradient_bytes"]
        )
        assert row["ema"] == bool(options) and row["workers"] == len(options[2:])
    assert sorted(path.name for path in output.parent.iterdir()) == ["train.json"]


def test_every_size_is_timed_by_itself(command: Command, coco_set: Path, tmp_path: Path) -> None:
    _, _, found = run(command, tmp_path / "train.json", "--data", coco_set, "--size", "64", "96")
    assert [(row["size"], row["input_bytes"]) for row in found["results"]] == [(64, 12288), (96, 27648)]


def test_the_steps_are_those_of_training(
    command: Command, coco_set: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As many steps of the real stepper as asked for, each on one batch of the real feed."""
    steps: list[int] = []
    batches: list[int] = []
    step, feed = Stepper.__call__, Feed.batches

    def counted_step(self: Stepper, parts: Any, *rest: Any) -> Any:
        steps.append(sum(len(part.images) for part in parts))
        return step(self, parts, *rest)

    def counted_feed(self: Feed, plan: Any) -> Any:
        batches.append(len(plan))
        return feed(self, plan)

    monkeypatch.setattr(Stepper, "__call__", counted_step)
    monkeypatch.setattr(Feed, "batches", counted_feed)
    run(command, tmp_path / "train.json", "--data", coco_set)
    assert steps == [BATCH] * (benchmark._WARM_UP + STEPS)
    assert batches[-1] == len(steps)


def test_a_configuration_that_fails_leaves_the_others(
    command: Command, coco_set: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained = benchmark.train_epoch

    def fails_at_96(prepared: Any) -> float:
        if prepared.state.config.size == 96:
            raise InputError("too large")
        return trained(prepared)

    monkeypatch.setattr(benchmark, "train_epoch", fails_at_96)
    code, out, found = run(command, tmp_path / "train.json", "--data", coco_set, "--size", "96", "64")
    assert code == 1 and "failed" in out.splitlines()[1]
    assert [row.get("error") for row in found["results"]] == ["too large", None]


def test_made_up_images_can_be_trained_on(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, "_IMAGES", 4)
    monkeypatch.setattr(benchmark, "_CLASSES", 3)
    code, _, found = run(command, tmp_path / "train.json")
    assert code == 0 and math.isfinite(found["results"][0]["images_per_second"])


class Event:
    """Stands in for a CUDA event on a device that is busy three times as long as the process that feeds it."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:0"
        Event.now += 3.0
        self.at = Event.now

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


def test_on_a_gpu_the_device_tells_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    cuda = SimpleNamespace(Event=Event, current_stream=lambda device: f"stream of {device}", synchronize=waited.append)
    monkeypatch.setattr(step_clock.torch, "cuda", cuda)
    clock = StepClock(torch.device("cuda:0"))
    model = SimpleNamespace(compiled=None, outputs=lambda images: images)
    precision = SimpleNamespace(backward=lambda loss: None)

    def step(*_: object) -> None:
        for _ in range(2):  # parts of a batch
            model.compiled(0)
            precision.backward(0)

    batches: Callable[[Any], Any] = lambda plan: iter(plan)  # noqa: E731
    fake: Any = SimpleNamespace(
        state=SimpleNamespace(model=model, precision=precision), feed=SimpleNamespace(batches=batches), step=step
    )
    clock.watch(fake)
    for _ in fake.feed.batches([0, 1, 2]):
        fake.step()
    assert not waited
    times = clock.read(skip=1)
    assert len(waited) == 1 and len(times.steps) == 2
    assert times.steps[0] == {"data": 3.0, "forward": 6.0, "loss": 6.0, "backward": 6.0, "optimizer": 9.0}
    assert times.totals == [30.0, 30.0]
