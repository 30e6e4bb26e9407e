"""Limits of what an exported file may lose, and how a command line names them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from calibration.budget import BUDGETS, CONFIDENCE
from export.accuracy.operating import F1, SHARES
from runtime import cli
from runtime.errors import InputError
from runtime.evaluation.matching import AREAS
from runtime.spec import PRECISIONS

SIZES = AREAS[1:]
EACH_CLASS = "each-class"

_OPERATING_HELP = {
    "vanished": "detections at the operating threshold that the file no longer has, of 100",
    "appeared": "detections there that only the file has, of 100",
    "reclassified": "detections there that have another class in the file, of 100",
}


@dataclass(frozen=True)
class Budgets:
    """Points of AP that a file may lose.

    Attributes:
        by_precision: over all classes, by precision of the file.
        by_class: of single classes, by name.
        by_size: of objects of one size, by name, see `SIZES`.
        each_class: of any class; None for no such limit.
    """

    by_precision: Mapping[str, float] = field(default_factory=lambda: dict(BUDGETS))
    by_class: Mapping[str, float] = field(default_factory=dict)
    by_size: Mapping[str, float] = field(default_factory=dict)
    each_class: float | None = None


@dataclass(frozen=True)
class Limits:
    """What the gate asks of a file.

    Attributes:
        budgets: of AP.
        confidence: of each bound that a verdict rests on, in (0.5, 1).
        accept_undecided: a file that is neither shown to keep within its budget nor to exceed it does not fail the run.
        allow_foreign: a file that names other weights as its source is judged all the same.
        operating: what may change at the operating point: `vanished`, `appeared` and `reclassified` in percent of the
            detections, `f1` in points; none but those named.
        require_speedup: the least speed of an INT8 file on this machine, that of FP32 being 1; None for any.
    """

    budgets: Budgets = field(default_factory=Budgets)
    confidence: float = CONFIDENCE
    accept_undecided: bool = False
    allow_foreign: bool = False
    operating: Mapping[str, float] = field(default_factory=dict)
    require_speedup: float | None = None


def parse_budgets(text: str) -> Budgets:
    """Parses budgets in points of AP.

    Args:
        text: `0.5` for files of every precision, or pairs such as `int8=1,person=0.2,small=0.5,each-class=2`; the precisions
            that are not named keep their default.

    Raises:
        InputError: anything but numbers from 0 to 100, or a name given twice.
    """
    try:
        if "=" not in text:
            return Budgets(dict.fromkeys(PRECISIONS, _points("every file", text)))
        pairs = [part.rsplit("=", 1) for part in text.split(",")]
        given = {name.strip(): _points(name.strip(), value) for name, value in pairs}
    except ValueError as error:
        raise InputError(f"expected points of AP as 0.5 or as int8=0.5,person=0.2; got {text!r}") from error
    if len(given) < len(pairs):
        raise InputError(f"expected each name once, got {text!r}")
    precisions = {name: given.pop(name) for name in PRECISIONS if name in given}
    sizes = {name: given.pop(name) for name in SIZES if name in given}
    each_class = given.pop(EACH_CLASS, None)
    return Budgets({**BUDGETS, **precisions}, given, sizes, each_class)


def _points(name: str, text: str) -> float:
    value = float(text)
    if not name or not 0 <= value <= 100:
        raise InputError(f"expected a name and points of AP in 0-100; got {name}={text}")
    return value


def check_classes(budgets: Budgets, class_names: Sequence[str]) -> None:
    """Checks that every class with a budget is one of the model's.

    Raises:
        InputError: a name that is neither a class nor anything else with a budget.
    """
    unknown = [name for name in budgets.by_class if name not in class_names]
    if unknown:
        known = ", ".join([*PRECISIONS, *SIZES, EACH_CLASS, *class_names[:5]]) + (", ..." if len(class_names) > 5 else "")
        raise InputError(f"--max-ap-drop {unknown[0]}=...: expected a precision, a size, or a class of the model ({known})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every command that runs the gate."""
    defaults = ",".join(f"{name}={value:g}" for name, value in BUDGETS.items())
    parser.add_argument(
        "--max-ap-drop",
        type=_budgets,
        default=Budgets(),
        metavar="POINTS",
        help=f"points of AP that may be lost: one number, or by precision, class or size: int8=0.5,person=0.2,small=1,"
        f"{EACH_CLASS}=2 (default: {defaults})",
    )
    parser.add_argument(
        "--confidence",
        type=_confidence,
        default=CONFIDENCE,
        help=f"of the bounds that a verdict rests on (default: {CONFIDENCE})",
    )
    parser.add_argument("--accept-undecided", action="store_true", help="exit 0 where the images are too few for a verdict")
    parser.add_argument("--allow-foreign", action="store_true", help="accept files that name other weights as their source")
    for name, help_ in _OPERATING_HELP.items():
        parser.add_argument(f"--max-{name}", dest=f"max_{name}", type=_percent, metavar="PERCENT", help=help_)
    parser.add_argument("--max-f1-drop", dest="max_f1", type=_percent, metavar="POINTS", help="points of F1 lost there")
    parser.add_argument(
        "--require-speedup",
        type=cli.positive_number,
        metavar="FACTOR",
        help="fail an INT8 file that runs here and is not this much faster than the FP32 file",
    )


def read_limits(options: argparse.Namespace) -> Limits:
    """Reads what `add_arguments` added."""
    operating = {name: getattr(options, f"max_{name}") for name in (*SHARES, F1)}
    return Limits(
        budgets=options.max_ap_drop,
        confidence=options.confidence,
        accept_undecided=options.accept_undecided,
        allow_foreign=options.allow_foreign,
        operating={name: value for name, value in operating.items() if value is not None},
        require_speedup=options.require_speedup,
    )


def to_arguments(limits: Limits) -> list[str]:
    """Formats limits as command-line arguments, the inverse of `read_limits`."""
    budgets = limits.budgets
    points = {**budgets.by_precision, **budgets.by_size, **budgets.by_class}
    if budgets.each_class is not None:
        points[EACH_CLASS] = budgets.each_class
    found = ["--max-ap-drop", ",".join(f"{name}={value!r}" for name, value in points.items())]
    found += ["--confidence", repr(limits.confidence)]
    found += ["--accept-undecided"] if limits.accept_undecided else []
    for name, value in limits.operating.items():
        found += [f"--max-{name}" + ("-drop" if name == F1 else ""), repr(value)]
    found += ["--allow-foreign"] if limits.allow_foreign else []
    return found + (["--require-speedup", repr(limits.require_speedup)] if limits.require_speedup is not None else [])


def _budgets(text: str) -> Budgets:
    try:
        return parse_budgets(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _percent(text: str) -> float:
    return _points("a limit", text)


def _confidence(text: str) -> float:
    value = float(text)
    if not 0.5 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0.5 and 1, got {text}")
    return value
