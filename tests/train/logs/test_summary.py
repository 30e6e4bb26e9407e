"""Lines on an evaluation and on a complete run, and its curves."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.evaluation.operating_point import Point
from runtime.viz.annotate import class_color
from runtime.viz.canvas import INK, PAPER
from train.config import TrainConfig
from train.logs.curves import draw_curves
from train.logs.fusion_weights import FUSION_COLUMNS
from train.logs.summary import describe_best, describe_evaluation, next_command
from train.run.options import RunOptions
from train.run_log import class_tags

BEST = Path("runs/x/best.pt")
LOSSES = ("iou", "classes", "total")


def row(epoch: int, **values: str) -> dict[str, str]:
    return {"epoch": str(epoch), "learning_rate": "0.001", "total": "12.5", **values}


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ([], []),
        ([row(1), row(2, AP="")], []),
        ([row(1, AP="no number")], []),
        (
            [row(1, AP="0.1", AP50="0.5"), row(2, AP="0.1", AP50="0.4"), row(3)],
            ["best:   epoch 2 of 3, runs/x/best.pt", "  AP     10.0", "  AP50   40.0"],
        ),
        (
            [row(1, AP="0.2", AP50="0.5", **{"AP cat": "0.25", "AP AP50": "0"}), row(2, AP="0.1", **{"AP cat": "0.9"})],
            [
                *("best:   epoch 1 of 2, runs/x/best.pt", "  AP           20.0", "  AP50         50.0"),
                *("  AP of cat    25.0", "  AP of AP50    0.0", "  AP of none      –"),
            ],
        ),
    ],
)
def test_the_best_epoch_is_the_last_of_the_highest_ap(rows: list[dict[str, str]], lines: list[str]) -> None:
    assert describe_best(rows, ["cat", "AP50", "none"], BEST) == lines


@pytest.mark.parametrize(
    ("changes", "config", "command"),
    [
        ({}, {}, "make engine WEIGHTS=runs/x/best.pt DATA=datasets/mine"),
        ({"data": Path("my data")}, {}, "make engine WEIGHTS=runs/x/best.pt 'DATA=my data'"),
        ({}, {"val_split": "test"}, "make engine WEIGHTS=runs/x/best.pt DATA=datasets/mine SPLIT=test"),
        ({"follow_links": True}, {}, "make engine WEIGHTS=runs/x/best.pt DATA=datasets/mine ARGS=--follow-links"),
    ],
)
def test_the_next_command_is_as_it_would_be_typed(changes: dict[str, Any], config: dict[str, Any], command: str) -> None:
    options = RunOptions(**({"data": Path("datasets/mine"), "output": BEST.parent} | changes))
    assert next_command(BEST, options, TrainConfig(recipe="x", **config)) == command
    assert all("=" in word for word in shlex.split(command)[2:])


FUSION = {name: round(0.1 * number, 1) for number, name in enumerate(FUSION_COLUMNS)}


@pytest.mark.parametrize(
    ("per_class", "best", "fusion", "lines"),
    [
        ({"cat": 0.5}, None, {}, ["  AP 12.3  AP50 –"]),
        ({"cat": 0.5}, Point(0.5, 1, 1, 2), {}, ["  AP 12.3  AP50 –  F1 50.0 from a score of 0.50"]),
        ({"cat": 0.5, "no": -1.0, "dog": 0.25}, None, {}, ["  AP 12.3  AP50 –", "    AP by class: cat 50.0, dog 25.0"]),
        (
            {f"c{number}": (11 - number) / 100 for number in range(12)},
            None,
            FUSION,
            [
                "  AP 12.3  AP50 –",
                "    lowest AP: " + ", ".join(f"c{11 - number} {number}.0" for number in range(10)),
                "    fusion weights of P5, P4, P3: in P5 0.00 0.10 0.20, P4 0.30 0.40 0.50, P3 0.60 0.70 0.80",
            ],
        ),
    ],
)
def test_an_evaluation_in_lines(
    per_class: dict[str, float], best: Point | None, fusion: dict[str, float], lines: list[str]
) -> None:
    result: Any = SimpleNamespace(ap=0.123, ap50=-1.0, per_class=per_class)
    assert describe_evaluation(result, best, fusion).split("\n") == lines


@pytest.mark.parametrize(
    ("names", "tags"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["traffic light", "Ampel/rot", "貓"], ["traffic_light", "Ampel_rot", "貓"]),
        (["a b", "a_b", "c"], ["a_b_0", "a_b_1", "c"]),
    ],
)
def test_tensorboard_tells_classes_apart(names: list[str], tags: list[str]) -> None:
    assert class_tags(names) == {f"AP {name}": f"accuracy_by_class/{tag}" for name, tag in zip(names, tags)}


def many(count: int) -> list[dict[str, str]]:
    values = {"iou": "0", "classes": "3.5", "gradient_norm": "100"}
    return [row(epoch, AP=f"{epoch / count / 2}" if epoch % 2 else "", **values) for epoch in range(1, count + 1)]


@pytest.mark.parametrize("rows", [[], [row(1)], many(1), many(3), many(300)])
def test_curves_of_any_length_are_drawn_whole(rows: list[dict[str, str]]) -> None:
    drawn = draw_curves("x on " + "data/" * 40, rows, LOSSES)
    assert drawn.dtype == np.uint8
    for edge in (drawn[:20], drawn[-20:], drawn[:, :20], drawn[:, -20:]):
        assert (edge == PAPER).all()
    near = [(np.abs(drawn.astype(int) - color).max(axis=2) < 40).any() for color in (INK, class_color(0))]
    assert near == [True, any("classes" in row for row in rows)]
