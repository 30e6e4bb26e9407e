"""Says what an evaluation found, and what a run came to; draws its curves."""

from __future__ import annotations

import datetime
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.evaluation.coco import Evaluation
from runtime.evaluation.operating_point import Point
from runtime.media.image import write_image
from train.config import TrainConfig
from train.logs.curves import draw_curves
from train.logs.fusion_weights import FUSION_COLUMNS, LEVELS
from train.run.folder import BEST, CURVES, surviving
from train.run.options import RunOptions
from train.run.prepare import Run
from train.run_log import class_column, number

Row = Mapping[str, str]

_MOST = 10  # classes in a line


def describe_evaluation(result: Evaluation, best: Point | None, fusion: Mapping[str, float]) -> str:
    """Describes an evaluation: AP and, a line each, those of the classes and the mean fusion weights.

    Args:
        result: the evaluation.
        best: the point of best F1, for weights that are kept.
        fusion: by the names of `FUSION_COLUMNS`; empty for a model without such weights.
    """
    figures = {"AP": result.ap, "AP50": result.ap50}
    first = "".join(f"  {name} {_percent(value)}" for name, value in figures.items())
    first += f"  F1 {best.f1 * 100:.1f} from a score of {best.threshold:.2f}" if best else ""
    lines = [first]
    known = {name: value for name, value in result.per_class.items() if value >= 0}
    if len(known) > _MOST:
        known = dict(sorted(known.items(), key=lambda item: item[1])[:_MOST])
        lines.append("lowest AP: " + ", ".join(f"{name} {_percent(value)}" for name, value in known.items()))
    elif len(known) > 1:
        lines.append("AP by class: " + ", ".join(f"{name} {_percent(value)}" for name, value in known.items()))
    if fusion:
        shares = [f"{value:.2f}" for value in (fusion[name] for name in FUSION_COLUMNS)]
        levels = [f"{level} {' '.join(shares[3 * index : 3 * index + 3])}" for index, level in enumerate(LEVELS)]
        lines.append(f"fusion weights of {', '.join(LEVELS)}: in {', '.join(levels)}")
    return "\n    ".join(lines)


def _percent(value: float) -> str:
    return f"{value * 100:.1f}" if value >= 0 else "–"


def conclude(run: Run, seconds: float) -> list[str]:
    """Draws the curves of a complete run into its folder, and describes it, a line each.

    Args:
        run: of the process that writes.
        seconds: that this process took for it.
    """
    state, options, total = run.state, run.options, run.step_log.total
    lines = describe_best(state.rows, state.spec.class_names, options.output / BEST)
    if total.steps:
        lines.append(f"time:   {datetime.timedelta(seconds=round(seconds))}{total.speed()}")
    with surviving():
        write_image(options.output / CURVES, draw_curves(f"{state.spec.name} on {options.data}", state.rows, state.losses))
        lines.append(f"curves: {options.output / CURVES}")
    return [*lines, f"next:   {next_command(options.output / BEST, options, state.config)}"]


def describe_best(rows: Sequence[Row], class_names: Sequence[str], best: Path) -> list[str]:
    """Describes the best epoch: its AP, that of each class where the rows have it.

    Args:
        rows: of `metrics.csv`, in order.
        class_names: of the spec.
        best: the best checkpoint.
    """
    scored = [row for row in rows if number(row, "AP") >= 0]
    if not scored:
        return []
    row = max(reversed(scored), key=lambda row: number(row, "AP"))  # of equal ones the last, which is kept
    figures = {"AP": number(row, "AP"), "AP50": number(row, "AP50")}
    by_class = {f"AP of {name}": number(row, class_column(name)) for name in class_names}
    if not all(map(math.isnan, by_class.values())):
        figures |= by_class
    width = max(map(len, figures))
    lines = [f"  {name:{width}} {_percent(value):>6}" for name, value in figures.items()]
    return [f"best:   epoch {row['epoch']} of {len(rows)}, {best}", *lines]


def next_command(best: Path, options: RunOptions, config: TrainConfig) -> str:
    """Returns the command that makes an engine of the best weights, as it would be typed."""
    values = [f"WEIGHTS={best}", f"DATA={options.data}"]
    values += [f"SPLIT={config.val_split}"] if config.val_split != TrainConfig.val_split else []
    values += ["ARGS=--follow-links"] if options.follow_links else []
    return shlex.join(["make", "engine", *values])
