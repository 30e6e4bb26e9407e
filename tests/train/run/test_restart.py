"""A run that was killed at any moment ends, once continued, as one that nothing disturbed: bit by bit."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from runtime.console import signals
from runtime.errors import InputError, ModelError, OutputError
from runtime.files import locked_folder
from runtime.media.image import read_image, write_image
from tests.support.torch_fixtures import coco_set as make_coco_set
from tests.support.training_runs import difference, random_recipe, run_options
from train import checkpoint, loop, recipes, run_log
from train.__main__ import main as train_command
from train.config import LossConfig
from train.data.training_set import TrainingSet
from train.loop import train
from train.run.folder import RunFolder, find_checkpoint
from train.run.step import Stepper
from train.run_log import RunLogger, read_metrics

ROOT = Path(__file__).parents[3]


class Killed(BaseException):
    """Stands for the end of the process at a moment."""


@pytest.fixture(autouse=True, scope="module")
def without_tensorboard() -> Iterator[None]:
    """Its files take time, and nothing here looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log, "Board", lambda *_: MagicMock())
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco_set.__wrapped__(tmp_path_factory.mktemp("data"))  # type: ignore[attr-defined,no-any-return]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole")
    torch.manual_seed(99)  # nothing may depend on what was drawn before
    train(random_recipe(), run_options(data, output))
    return output


def at_call(number: int, function: Callable[..., object], before: Callable[[], object] | None = None) -> Callable[..., object]:
    """The function, killed at its n-th call: before it did anything, or after a part of it."""
    calls = iter(range(1, 1000))

    def wrapped(*arguments: object, **options: object) -> object:
        if next(calls) == number:
            if before:
                before()
            raise Killed(function.__name__)
        return function(*arguments, **options)

    return wrapped


def logged_steps(folder: Path) -> list[list[str]]:
    """The rows of `steps.csv` but for what depends on the time."""
    rows = csv.DictReader((folder / "steps.csv").read_text().splitlines())
    return [[value for name, value in row.items() if name not in ("images_per_second", "data_wait")] for row in rows]


def half_written(folder: Path) -> None:
    """What a kill amid a write leaves."""
    (folder / ".last-abcd1234.pt").write_bytes((folder / "last.pt").read_bytes()[:5000])
    (folder / ".metrics-abcd1234.csv").write_text("epoch,lear")


MOMENTS: tuple[tuple[str, object, str, int], ...] = (
    ("before the first step", Stepper, "__call__", 1),
    ("in mid-epoch, before a checkpoint in it", Stepper, "__call__", 3),
    ("in the write of the checkpoint in it", checkpoint, "_shift", 1),
    ("in mid-epoch, behind that", Stepper, "__call__", 4),
    ("before the evaluation", loop, "_evaluate", 1),
    ("between the evaluation and the best weights", RunFolder, "save_best", 1),
    ("between the best weights and the metrics", RunLogger, "write_table", 1),
    ("between the metrics and the checkpoint", RunFolder, "save", 1),
    ("in the write of the checkpoint after an epoch", checkpoint, "_shift", 2),  # the first is that of the best weights
    ("in the next epoch", Stepper, "__call__", 2),
    ("in the last epoch", Stepper, "__call__", 4),
    ("before the last checkpoint", RunFolder, "finish", 1),
)
"""What is killed in turn, in a run of two epochs of four steps with a checkpoint after every third: the call of a function."""


def test_a_run_that_is_killed_at_every_moment_ends_as_an_undisturbed_one(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _, owner, name, call in MOMENTS:
        torch.manual_seed(call)  # nothing may depend on it
        with monkeypatch.context() as patch:
            before = (lambda: half_written(tmp_path)) if name == "_shift" else None
            patch.setattr(owner, name, at_call(call, getattr(owner, name), before))
            with pytest.raises(Killed, match=f"^{name}$"):
                train(random_recipe(), run_options(data, tmp_path), find_checkpoint(tmp_path))
    train(random_recipe(), run_options(data, tmp_path), find_checkpoint(tmp_path))
    assert difference(whole, tmp_path) == []
    assert logged_steps(tmp_path) == logged_steps(whole)
    assert [row[0] for row in logged_steps(whole)] == ["3", "4", "7", "8"]  # at each checkpoint
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".")]
    assert sorted(item.name for item in tmp_path.glob("last*.pt")) == ["last-1.pt", "last-2.pt", "last.pt"]


class FullDisk:
    """Writes that fail for want of space while `full` is set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full, self.failures = False, 0
        for name in ("write_bytes", "write_text"):
            patch.setattr(Path, name, self._guarded(getattr(Path, name)))

    def _guarded(self, write: Callable[..., int]) -> Callable[..., int]:
        def guarded(path: Path, content: object, **options: object) -> int:
            if not self.full:
                return write(path, content, **options)
            self.failures += 1
            path.touch()
            raise OSError(errno.ENOSPC, "No space left on device")

        return guarded


def during(disk: FullDisk, first: int, last: int, killed: int = 1000) -> Callable[..., object]:
    """A step that finds the disk full from one call to another, and the process killed at a third."""
    calls, step = iter(range(1, 1000)), Stepper.__call__

    def wrapped(*arguments: object, **options: object) -> object:
        call = next(calls)
        disk.full = first <= call < last
        if call == killed:
            raise Killed
        return step(*arguments, **options)  # type: ignore[arg-type]

    return wrapped


@pytest.mark.parametrize("killed", [1000, 5], ids=["to the end", "killed meanwhile"])
def test_a_full_disk_is_survived(
    killed: int, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        disk = FullDisk(patch)
        patch.setattr(Stepper, "__call__", during(disk, 2, 6, killed))
        with contextlib.suppress(Killed):
            train(random_recipe(), run_options(data, tmp_path))
    assert disk.failures >= 3  # a checkpoint amid the epoch, the best weights, the metrics
    assert "last.pt: No space left on device; " in caplog.text and "training goes on" in caplog.text
    if killed < 1000:
        train(random_recipe(), run_options(data, tmp_path), find_checkpoint(tmp_path))
    assert difference(whole, tmp_path) == []


def test_a_disk_that_stays_full_ends_the_run_with_the_last_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stepper, "__call__", during(FullDisk(monkeypatch), 5, 1000))
    with pytest.raises(OutputError, match="No space left"):
        train(random_recipe(), run_options(data, tmp_path))
    assert checkpoint.load(tmp_path / "last.pt").epoch == 1


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, signals.Terminated)])
def test_a_signal_takes_effect_behind_a_step_with_a_checkpoint(
    number: int, error: type[BaseException], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Stepper.__call__

    calls = iter(range(1, 10))

    def interrupted(*arguments: object) -> object:
        if next(calls) == 2:
            signal.raise_signal(number)
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "__call__", interrupted)
    with signals.raised(), pytest.raises(error):
        train(random_recipe(), run_options(data, tmp_path))
    progress = checkpoint.load(tmp_path / "last.pt").progress
    assert progress and progress.step == 3  # the step after the one in which it arrived carries it to all ranks


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "last.pt").write_bytes(b"torn")
    found = find_checkpoint(tmp_path)
    assert found and found.progress and (found.epoch, found.progress.step) == (1, 3)
    assert "last.pt: not a checkpoint that can be read" in caplog.text
    for file in tmp_path.glob("last*.pt"):
        file.write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"last\.pt"):
        find_checkpoint(tmp_path)


def other_label(data: Path) -> None:
    file = data / "annotations" / "instances_train.json"
    file.write_text(file.read_text().replace('"category_id": 3', '"category_id": 10', 1))


def other_image(data: Path) -> None:
    file = data / "val" / "2.png"
    image = read_image(file)
    image[0, 0] ^= 1
    write_image(file, image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, ""),
        (other_label, "its labels are not those"),
        (other_image, "its images are not those"),
        ({"seed": 5}, r"\(seed 5, not 0\)"),
        ({"loss": LossConfig(ignore_iou=0.5)}, r"\(loss\.ignore_iou 0\.5, not 0\.7\)"),
        ({"recipe": "another", "epochs": 9}, "recipe another, not tiny, epochs 9, not 2"),
    ],
)
def test_a_run_is_continued_as_it_was_begun(change: object, message: str, data: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "elsewhere")  # the folder may have moved
    shutil.copytree(whole, tmp_path / "run")
    if callable(change):
        change(tmp_path / "elsewhere")
    config = random_recipe(**change) if isinstance(change, dict) else random_recipe()
    options = run_options(tmp_path / "elsewhere", tmp_path / "run")
    if not message:
        assert train(config, options, find_checkpoint(tmp_path / "run")) == tmp_path / "run" / "best.pt"
        return
    with pytest.raises(InputError, match=message):
        train(config, options, find_checkpoint(tmp_path / "run"))
    assert difference(whole, tmp_path / "run") == []


def test_a_second_run_does_not_get_into_the_folder(data: Path, tmp_path: Path) -> None:
    with locked_folder(tmp_path), pytest.raises(OutputError, match="another process writes into it"):
        train(random_recipe(), run_options(data, tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("strict", [False, True])
def test_an_image_may_vanish_while_training(
    strict: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(data, tmp_path / "set")
    monkeypatch.setattr(TrainingSet, "_fill_cache", lambda *_: None)
    step = Stepper.__call__

    def vanishing(*arguments: object, **options: object) -> object:
        for file in ("train/3.png", "val/1.png"):
            (tmp_path / "set" / file).unlink(missing_ok=True)
        return step(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "__call__", vanishing)
    options = run_options(tmp_path / "set", tmp_path / "run", strict=strict)
    if strict:
        with pytest.raises(InputError, match=r"(3|1)\.png"):
            train(random_recipe(), options)
        assert checkpoint.load(tmp_path / "run" / "last.pt")
    else:
        assert train(random_recipe(), options).is_file()
        assert "left out of training: " in caplog.text and "1 of 4 images could not be read" in caplog.text


COMMAND = """
from runtime import cli
from tests.support.training_runs import random_recipe
from train import __main__, recipes
recipes.RECIPES["random"] = random_recipe
cli.run(__main__.main)
"""


def test_kill_9_and_sigterm_are_continued_by_the_same_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of a requeue script, run again and again."""

    def arguments(folder: Path) -> list[str]:
        plain = ["--recipe", "random", "--epochs", "4", "--evaluate-every", "4", "--device", "cpu", "--save-every", "1"]
        return ["--data", str(data), "--output", str(folder), *plain, "--resume"]

    run = tmp_path / "run"
    for number, code, written in ((signal.SIGKILL, -9, 1), (signal.SIGTERM, 143, 2)):
        child = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments(run)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while len(read_metrics(run / "metrics.csv")) < written and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
        assert child.returncode == code, said
        assert "Traceback" not in said
    assert f"continue with: python -m train {shlex.join(arguments(run))}\n" in said
    monkeypatch.setitem(recipes.RECIPES, "random", random_recipe)
    assert train_command(arguments(run)) == train_command(arguments(tmp_path / "whole")) == 0
    assert difference(tmp_path / "whole", run) == []
    assert train_command(arguments(run)) == 0  # complete: a requeue script may come once more
