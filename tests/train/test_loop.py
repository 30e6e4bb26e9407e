"""Training end to end on a handful of small images."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.datasets.dataset import MadeSplit
from runtime.errors import CheckFailed, InputError, MissingComponentError, ModelError
from runtime.evaluation.coco import Evaluation
from runtime.evaluation.matching import AREAS, IOU_THRESHOLDS, ClassMatches, Matches
from runtime.evaluation.operating_point import between
from tests.support.detect_command import Command
from tests.support.small_models import CLASSES, tiny
from train import checkpoint
from train import loop as training
from train.__main__ import _find_run, configure, main, parse
from train.config import LossConfig, TrainConfig
from train.data import AugmentConfig
from train.loop import set_dropblock, train
from train.model import build_model
from train.model.blocks import DropBlock
from train.model.complexity import Complexity
from train.precision import prefers_bfloat16
from train.recipes import RECIPES, recipe
from train.run.device import choose_device
from train.run.options import RunOptions
from train.run.prepare import without_pointless_smoothing
from train.validate import main as validate

ROOT = Path(__file__).parents[2]


def config(**changes: object) -> TrainConfig:
    plain = tiny().replace(augment=AugmentConfig.none(), mixup=False, tail_epochs=0, fixed_epochs=0)
    return plain.replace(loss=LossConfig(label_smoothing=False), **changes)


def options(data: Path, output: Path, **changes: object) -> RunOptions:
    return RunOptions(data=data, output=output, workers=0, progress=False, **changes)  # type: ignore[arg-type]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_checkpoints_metrics_and_images(coco_set: Path, tmp_path: Path) -> None:
    plan = config(epochs=16, optimizer="adamw", learning_rate=1e-2, evaluate_every=8, batch=2)
    best = train(plan, options(coco_set, tmp_path / "run"))
    assert best == tmp_path / "run" / "best.pt"
    table = rows(tmp_path / "run")
    assert [row["epoch"] for row in table] == [str(i) for i in range(1, 17)]
    assert float(table[-1]["total"]) < 0.7 * float(table[0]["total"])  # it learns
    assert [bool(row["AP"]) for row in table] == [False] * 7 + [True] + [False] * 7 + [True]
    parts = ("anchor", "iou", "offset", "objectness", "classes")
    assert sum(float(table[0][part]) for part in parts) == pytest.approx(float(table[0]["total"]), rel=1e-4)
    for name in ("last.pt", "training.jpg", "validation-last.png", "validation-best.png", "curves.png"):
        assert (tmp_path / "run" / name).is_file()
    steps = list(csv.DictReader((tmp_path / "run" / "steps.csv").read_text().splitlines()))
    assert [row["step"] for row in steps] == [str(4 * number) for number in range(1, 17)]  # at each checkpoint
    for name in ("gradient_norm", "total"):
        assert [float(row[name]) for row in steps] == pytest.approx([float(row[name]) for row in table], rel=1e-4)
    for row in table[7::8]:
        by_class = [float(row[f"AP {name}"]) for name in CLASSES]
        assert sum(by_class) / 3 == pytest.approx(float(row["AP"]), abs=1e-5)
        assert sum(float(row[f"P3_from_{level}"]) for level in ("P5", "P4", "P3")) == pytest.approx(1, abs=1e-4)
    for folder in ("tensorboard", "tensorboard/steps"):
        assert list((tmp_path / "run" / folder).glob("events*"))
    loaded = checkpoint.load(best)
    assert loaded.spec.class_names == CLASSES
    assert loaded.optimizer is None


def test_validation_images_are_held_back_where_the_data_has_none(
    coco_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (coco_set / "annotations" / "instances_val.json").unlink()
    best = train(config(epochs=1, batch=2), options(coco_set, tmp_path / "run", made_split=MadeSplit(0.25, 3)))
    spec = checkpoint.load(best).spec
    assert spec.made_split is not None and spec.made_split[:2] == (0.25, 3)
    sides = json.loads((tmp_path / "run" / "split.json").read_text())
    assert (sides["share"], sides["seed"], sides["sha256"]) == spec.made_split
    assert not set(sides["train"]) & set(sides["val"]) and len(sides["train"] + sides["val"]) == 8
    assert validate(["--weights", str(best), "--data", str(coco_set)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{len(sides['val'])} images, ")
    for other, message in ((["--val-share", "0.5"], "trained with 0.25"), (["--split-seed", "4"], "trained with 3")):
        with pytest.raises(InputError, match=message):
            validate(["--weights", str(best), "--data", str(coco_set), *other])
    (coco_set / "train" / "5.png").rename(coco_set / "train" / "5.PNG")
    with pytest.raises(InputError, match="not the data that the model was trained on"):
        validate(["--weights", str(best), "--data", str(coco_set)])
    with pytest.raises(InputError, match="not the data that the model was trained on"):
        train(config(epochs=1), options(coco_set, tmp_path / "again", made_split=MadeSplit(*spec.made_split)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_objects_is_refused(split: str, coco_set: Path, tmp_path: Path) -> None:
    source = coco_set / "annotations" / f"instances_{split}.json"
    source.write_text(json.dumps({**json.loads(source.read_text()), "annotations": []}))
    with pytest.raises(InputError, match=f"split '{split}' has no object to "):
        train(config(epochs=1), options(coco_set, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_no_best_weights_come_from_an_ap_that_does_not_exist(
    coco_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in (1, 2, 3):  # the images with objects; 0 has none
        (coco_set / "val" / f"{index}.png").write_bytes(b"no image")
    with caplog.at_level(logging.INFO), pytest.raises(InputError, match="no evaluation gave an AP"):
        train(config(epochs=1, batch=2), options(coco_set, tmp_path / "run"))
    assert "AP –  AP50 –" in caplog.text and "-100" not in caplog.text and "nan" not in caplog.text
    assert not (tmp_path / "run" / "best.pt").exists() and rows(tmp_path / "run")[0]["AP"] == ""


def test_retinanet_trains_as_yolo_does(coco_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = config(epochs=12, optimizer="adamw", learning_rate=3e-3, evaluate_every=6, batch=2, size=96, sizes=(96,))
    plan = plan.replace(model=tiny(detector="retinanet").model)
    best = train(plan, options(coco_set, tmp_path / "run"))
    table = rows(tmp_path / "run")
    assert float(table[-1]["total"]) < 0.7 * float(table[0]["total"])
    assert float(table[0]["classes"]) + float(table[0]["boxes"]) == pytest.approx(float(table[0]["total"]), rel=1e-4)
    assert validate(["--weights", str(best), "--data", str(coco_set), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["figures"]["AP"] == pytest.approx(checkpoint.load(best).best_ap, abs=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one(coco_set: Path, tmp_path: Path) -> None:
    plan = config(epochs=4).replace(augment=AugmentConfig(), mixup=True, plain_epochs=1)
    train(plan, options(coco_set, tmp_path / "whole"))
    stopped = tmp_path / "stopped"
    original = training._run_epoch
    with pytest.MonkeyPatch.context() as patch:

        def until_two(state: object, *rest: object) -> None:
            if state.state.epoch == 2:  # type: ignore[attr-defined]
                raise KeyboardInterrupt
            original(state, *rest)  # type: ignore[arg-type]

        patch.setattr(training, "_run_epoch", until_two)
        with pytest.raises(KeyboardInterrupt):
            train(plan, options(coco_set, stopped))
    saved = checkpoint.load(stopped / "last.pt")
    assert saved.epoch == 2
    train(saved.config, options(coco_set, stopped), saved)
    whole, resumed = (checkpoint.load(folder / "last.pt") for folder in (tmp_path / "whole", stopped))
    assert whole.epoch == resumed.epoch == 4
    for name, value in whole.weights.items():
        torch.testing.assert_close(resumed.weights[name], value, rtol=1e-5, atol=1e-6)
    assert [row["total"] for row in rows(stopped)] == [row["total"] for row in rows(tmp_path / "whole")]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(coco_set: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"not finite in epoch \d+, batch \d+: .*train.*\.png"):
        train(config(epochs=4, learning_rate=1e12), options(coco_set, tmp_path / "run"))
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert all(torch.isfinite(value).all() for value in saved.weights.values())


def test_validation_scores_a_checkpoint_as_training_did(
    coco_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = train(config(epochs=6, learning_rate=2e-3), options(coco_set, tmp_path / "run"))
    assert validate(["--weights", str(best), "--data", str(coco_set), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["figures"]["AP"] == pytest.approx(checkpoint.load(best).best_ap, abs=1e-6)
    assert measured["images"] == 4
    assert set(measured["per_class"]) == set(CLASSES)


def scored(ap: float, *scores: float) -> Evaluation:
    """An evaluation of this AP, in which one object is found at each of these scores, and all is right."""
    right = np.ones((IOU_THRESHOLDS, len(scores)), np.bool_)
    found = ClassMatches(np.zeros(len(scores), np.int32), np.array(scores), right, ~right, np.array([3], np.int32))
    return Evaluation({"AP": ap, "AP50": ap}, {}, 1, (), [], Matches((1,), ("cat",), dict.fromkeys(AREAS, (found,))))


def test_the_best_weights_carry_the_operating_threshold_that_they_were_measured_to_have(
    coco_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    results = iter([scored(0.1), scored(0.5, 0.9, 0.5), scored(0.4, 0.9, 0.7, 0.3), scored(0.3, 0.2), scored(0.6)])
    monkeypatch.setattr(training, "_evaluate", lambda *_: next(results))
    folder = tmp_path / "run"
    best = train(config(epochs=3), options(coco_set, folder))
    assert (checkpoint.load(best).epoch, checkpoint.load(best).spec.operating_threshold) == (2, between(0.5 * 0.999, 0.5))
    assert "epoch 2/3" in caplog.text and "F1 80.0 from a score of 0.50" in caplog.text
    assert checkpoint.load(folder / "last.pt").spec.operating_threshold is None  # its weights are others
    checkpoint.store_threshold(folder / "last.pt", 0.5)
    longer = checkpoint.load(folder / "last.pt")
    longer = dataclasses.replace(longer, config=longer.config.replace(epochs=5))
    train(longer.config, options(coco_set, folder), longer)
    assert (checkpoint.load(best).epoch, checkpoint.load(best).spec.operating_threshold) == (5, None)  # nothing was right
    assert checkpoint.load(folder / "last.pt").spec.operating_threshold is None


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    coco_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(CheckFailed, match=r"\(gradient\) is not finite in epoch 1, batch 1"):
        train(config(epochs=1), options(coco_set, tmp_path / "run"))


def test_a_new_run_leaves_nothing_of_an_earlier_one(coco_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config(epochs=1), options(coco_set, tmp_path / "run"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_run_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config(epochs=2), options(coco_set, tmp_path / "run"))
    assert not (tmp_path / "run" / "best.pt").exists()
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert checkpoint.load(tmp_path / "run" / "last.pt").config.epochs == 2


def test_what_cannot_start_leaves_nothing(coco_set: Path, tmp_path: Path) -> None:
    (coco_set / "train" / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3\.png"):
        train(config(), options(coco_set, tmp_path / "run", strict=True))
    assert not (tmp_path / "run").exists()


def test_a_foreign_optimizer_state_is_refused(coco_set: Path, tmp_path: Path) -> None:
    train(config(epochs=1), options(coco_set, tmp_path / "run"))
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    with pytest.raises(ModelError, match="optimizer state"):
        train(saved.config, options(coco_set, tmp_path / "run"), dataclasses.replace(saved, optimizer={"state": {}}))


def test_images_in_both_splits_are_warned_of(coco_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(config(epochs=1, val_split="train"), options(coco_set, tmp_path / "run"))
    assert "8 images are in both train and train" in caplog.text


def test_smoothing_is_off_where_it_says_nothing() -> None:
    smooth = tiny().replace(loss=LossConfig(label_smoothing=True))
    assert [without_pointless_smoothing(smooth, n).loss.label_smoothing for n in (1, 2, 3)] == [False, False, True]


@pytest.mark.parametrize(("native", "expected"), [(False, False), (True, True)])
def test_bfloat16_is_for_processors_that_have_it(native: bool, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert prefers_bfloat16(torch.device("cpu")) is expected


def test_fewer_epochs_keep_the_shape_of_the_schedule() -> None:
    short = configure(parse(["--recipe", "yolov3-asff", "--epochs", "30"]))
    assert (short.epochs, short.tail_epochs, short.plain_epochs, short.fixed_epochs, short.warmup_epochs) == (30, 3, 3, 1, 1)
    small = configure(parse(["--recipe", "yolov3-asff", "--size", "416"]))
    assert (small.size, max(small.sizes), min(small.sizes)) == (416, 416, 224)


def test_an_unknown_device_is_a_missing_component() -> None:
    with pytest.raises(MissingComponentError, match="--device cpu"):
        choose_device("nonsense")


def test_splits_with_other_classes_are_refused(coco_set: Path, tmp_path: Path) -> None:
    file = coco_set / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace('"bird"', '"fish"'))
    with pytest.raises(InputError, match="classes"):
        train(config(), options(coco_set, tmp_path / "run"))


def expect_failure(command: Command, code: int, message: str, *arguments: object) -> None:
    found, _, err = command(main, *arguments)
    assert found == code and re.search(message, err) and "Traceback" not in err, err


def test_bad_input_is_one_line_and_a_code(command: Command, coco_set: Path, tmp_path: Path) -> None:
    expect_failure(command, 2, "no dataset given", "--recipe", "demo")
    expect_failure(command, 2, "no such dataset folder", "--data", tmp_path / "none")
    expect_failure(command, 2, "no recipe 'nothing'; there are yolov3, ", "--data", coco_set, "--recipe", "nothing")
    expect_failure(command, 2, "multiple of 32", "--data", coco_set, "--size", 100)
    expect_failure(command, 2, "no such checkpoint", "--data", coco_set, "--resume", tmp_path)
    expect_failure(command, 2, "at least 0", "--data", coco_set, "--workers", -1)
    expect_failure(command, 2, "at least 0", "--data", coco_set, "--seed", -1)
    (tmp_path / "file").touch()
    expect_failure(command, 2, "cannot write", "--data", coco_set, "--recipe", "demo", "--output", tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        (["--save-every", "500"], {"save_steps": 500}),
        (["--save-every", "10min"], {"save_minutes": 10.0}),
        (["--save-every", "500", "2.5min"], {"save_steps": 500, "save_minutes": 2.5}),
    ],
)
def test_checkpoints_come_after_steps_or_minutes(given: list[str], expected: dict[str, float]) -> None:
    assert dict(parse(["--data", "d", *given]).save_every) == expected


@pytest.mark.parametrize("wrong", ["0", "min", "-1min", "0min", "10h", "1.5"])
def test_other_intervals_are_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["--save-every", wrong])
    assert capsys.readouterr().err.count("\n") == 1


def test_resume_alone_takes_the_folder_of_output(coco_set: Path, tmp_path: Path) -> None:
    started = parse(["--data", str(coco_set), "--recipe", "demo", "--output", str(tmp_path), "--resume"])
    assert _find_run(started) == (tmp_path, None)
    with pytest.raises(InputError, match="leave out --overwrite"):
        _find_run(parse(["--data", str(coco_set), "--output", str(tmp_path), "--resume", "--overwrite"]))
    (tmp_path / "best.pt").touch()
    with pytest.raises(InputError, match=r"best\.pt, but no checkpoint to continue from"):
        _find_run(started)


def test_the_list_names_every_recipe(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.__main__.complexity", lambda *_: Complexity(10**6, {416: 10**9, 608: 10**9}))
    code, out, _ = command(main, "--list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[2:]] == list(RECIPES)


def test_ctrl_c_leaves_a_checkpoint_to_resume_from(command: Command, coco_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("--data", coco_set, "--recipe", "demo", "--size", 64, "--batch", 4, "--output", folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *map(str, arguments), "--epochs", "10000", "--evaluate-every", "10000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.csv"
    while not (metrics.exists() and metrics.read_text().count("\n") > 1) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    try:
        _, talk = process.communicate(timeout=60)
    finally:
        process.kill()  # or a training of 10,000 epochs goes on
    assert process.returncode == 130, talk
    same = shlex.join(map(str, arguments))
    assert f"continue with: python -m train {same} --epochs 10000 --evaluate-every 10000 --resume\n" in talk
    assert "Traceback" not in talk
    saved = checkpoint.load(folder / "last.pt")
    assert saved.epoch >= 1
    assert not [item for item in folder.iterdir() if item.name.startswith(".")]
    expect_failure(command, 2, "already holds a run", *arguments)
    for refused in (("--epochs", 3), ("--recipe", "demo"), ("--overwrite",), ("--train-split", "val"), ("--precision", "fp32")):
        expect_failure(command, 2, f"leave out {refused[0]}", "--data", coco_set, "--resume", folder, *refused)


@pytest.mark.parametrize(
    ("epoch", "sizes"), [(0, (0, 0, 0)), (4, (0, 0, 0)), (5, (1, 3, 5)), (79, (1, 3, 5)), (80, (3, 5, 7)), (449, (7, 7, 7))]
)
def test_dropblock_follows_its_schedule(epoch: int, sizes: tuple[int, int, int]) -> None:
    star = recipe("yolov3-asff-star")
    with torch.device("meta"):
        model = build_model(star.model, 2)
    set_dropblock(model, star, 200)
    set_dropblock(model, star, epoch)
    neck = model.neck
    blocks = [next(m for m in part.modules() if isinstance(m, DropBlock)) for part in (neck.p5, neck.p4, neck.p3)]
    assert tuple(block.size for block in blocks) == sizes


def test_a_shorter_training_has_a_shorter_dropblock_schedule() -> None:
    short = configure(parse(["--recipe", "yolov3-asff-star", "--epochs", "90"]))
    assert short.dropblock == ((1, (1, 3, 5)), (16, (3, 5, 7)), (30, (7, 7, 7)))
