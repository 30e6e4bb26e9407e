"""The accuracy gate: every exported file is scored by the code that scored PyTorch, and may lose so much AP and no more."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.accuracy.measure import Measurement, measure
from runtime.backends.base import Backend
from runtime.backends.open import open_backend
from runtime.datasets.dataset import Dataset
from runtime.errors import CheckFailed, InputError, MissingComponentError, ModelError
from runtime.manifest import find_changes, manifest_path
from runtime.spec import PRECISIONS, ModelSpec
from train.torch_backend import open_torch_backend

log = logging.getLogger(__name__)

BUDGETS = {"fp32": 0.05, "fp16": 0.1, "int8": 0.5}
"""Points of AP that a file of each precision may lose."""
PASSED, FAILED, NOT_RUN = "passed", "failed", "built, not run"

_IDENTITY = ("class_names", "anchors", "strides")  # with others it is another model
_HANDLING = ("resize", "pad_value", "mean", "std", "color", "score_threshold", "nms_threshold")  # with others it is misused
_ROUNDING = 1e-9  # of points of AP; what float arithmetic leaves of a difference that is exactly the budget


@dataclass(frozen=True)
class ExportedFile:
    """A file to be judged.

    Attributes:
        name: what to call it. file: where it is. backend: runs it, or None where this machine cannot.
        reason: why this machine cannot.
    """

    name: str
    file: Path
    backend: Backend | None
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        name, file: as in `ExportedFile`. spec: its description, None where it was not opened.
        measurement: what was measured, None where it did not run to the end.
        status: `passed`, `failed` or `built, not run`. reasons: for anything but a pass, a line each.
        notes: what is odd but costs nothing, a line each.
    """

    name: str
    file: Path
    spec: ModelSpec | None
    measurement: Measurement | None
    status: str
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """All that was measured: the weights in PyTorch, and what became of each file made from them.

    Attributes:
        weights: their file. spec: their description, at the input size of the files.
        dataset: what was scored. budgets: points of AP by precision.
    """

    weights: Path
    spec: ModelSpec
    dataset: Dataset
    budgets: Mapping[str, float]
    reference: Measurement
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether no file failed; files that could not be run here count neither way."""
        return all(outcome.status != FAILED for outcome in self.outcomes)


def parse_budgets(text: str) -> dict[str, float]:
    """`fp32=0.05,int8=1` (those not named keep their default) or `0.5` for all, in points of AP.

    Raises:
        InputError: an unknown precision, or not a number of at least 0.
    """
    try:
        if "=" not in text:
            given = dict.fromkeys(PRECISIONS, float(text))
        else:
            given = {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise InputError(f"expected points of AP as 0.5 or as fp32=0.05,fp16=0.1,int8=0.5; got {text!r}") from error
    for name, value in given.items():
        if name not in PRECISIONS or not 0 <= value <= 100:
            raise InputError(f"expected {', '.join(PRECISIONS)} and points of AP in 0-100; got {name}={value:g}")
    return {**BUDGETS, **given}


def verify(weights: Path, files: Sequence[Path], dataset: Dataset, budgets: Mapping[str, float]) -> Verification:
    """Score the weights in PyTorch and every file, at the files' own input size, and hold each against its budget.

    Raises:
        InputError: a file cannot be used, is no export of such weights, or the files differ in input size.
        CheckFailed: the weights find nothing in this split, so that no loss could be seen.
        MissingComponentError: none of the files can be run here.
    """
    with open_files(files) as opened:
        pytorch = open_torch_backend(weights, _common_size(opened))
        spec = pytorch.spec
        for exported in opened:
            if exported.backend:
                _check_same_model(exported.file, exported.backend.spec, spec)
        log.info("scoring PyTorch on %d images", len(dataset))
        reference = measure("PyTorch", pytorch, weights, dataset)
        if reference.evaluation.ap <= 0:
            raise CheckFailed(
                f"{weights} reaches an AP of 0 on {dataset.split} of {dataset.root}, so a loss could not be seen;"
                " use trained weights, and a split with the objects they were trained on"
            )
        outcomes = tuple(_examine(exported, pytorch, reference, dataset, budgets) for exported in opened)
    return Verification(weights, spec, dataset, budgets, reference, outcomes)


@contextlib.contextmanager
def open_files(files: Sequence[Path]) -> Iterator[list[ExportedFile]]:
    """Open every file before any long work; an engine that this machine cannot run is kept with the reason.

    Raises:
        InputError: a file cannot be used. MissingComponentError: none of them can be run here.
    """
    names = [file.name for file in files]
    with contextlib.ExitStack() as stack:
        opened = []
        for file in files:
            name = file.name if names.count(file.name) == 1 else str(file)
            try:
                opened.append(ExportedFile(name, file, stack.enter_context(open_backend(file))))
            except MissingComponentError as error:
                if file.suffix != ".engine":
                    raise
                opened.append(ExportedFile(name, file, None, str(error).removeprefix(f"{file}: ")))
        if not any(exported.backend for exported in opened):
            reasons = "; ".join(f"{exported.file}: {exported.reason}" for exported in opened)
            raise MissingComponentError(f"nothing was verified, none of the files can be run here: {reasons}")
        yield opened


def _common_size(opened: Sequence[ExportedFile]) -> tuple[int, int]:
    """The files' input size. AP depends on it, so one PyTorch figure can only be the reference of files of one size."""
    sizes = {exported.backend.spec.input_size: exported.name for exported in opened if exported.backend}
    if len(sizes) > 1:
        found = ", ".join(f"{name} {height}x{width}" for (height, width), name in sizes.items())
        raise InputError(f"the files differ in input size ({found}), and AP depends on it; verify each size in its own run")
    return next(iter(sizes))


def _check_same_model(file: Path, spec: ModelSpec, weights: ModelSpec) -> None:
    for field in _IDENTITY:
        found, expected = getattr(spec, field), getattr(weights, field)
        if found != expected:
            what = field.replace("_", " ")
            raise ModelError(
                f"{file}: is no export of these weights: its {what} are {_short(found)},"
                f" those of the weights {_short(expected)}; export the weights again"
            )


def _short(values: Sequence[object]) -> str:
    shown = ", ".join(str(value) for value in values[:3])
    return f"{shown}, ... ({len(values)})" if len(values) > 3 else shown


def _examine(
    exported: ExportedFile, pytorch: Backend, reference: Measurement, dataset: Dataset, budgets: Mapping[str, float]
) -> Outcome:
    name, file, backend = exported.name, exported.file, exported.backend
    if backend is None:
        return Outcome(name, file, None, None, NOT_RUN, (exported.reason,), _manifest_notes(file))
    spec = backend.spec
    foreign = ("its description names other weights as its source",)
    notes = (foreign if spec.source_sha256 != pytorch.spec.source_sha256 else ()) + _manifest_notes(file)
    log.info("scoring %s", name)
    try:
        measurement = measure(name, backend, file, dataset, pytorch)
    except ModelError as error:  # opened well but does not run, or computes what are not numbers: damaged
        return Outcome(name, file, spec, None, FAILED, (str(error),), notes)
    reasons = judge(reference, measurement, spec.precision, budgets) + _misdescribed(spec, pytorch.spec)
    return Outcome(name, file, spec, measurement, FAILED if reasons else PASSED, tuple(reasons), notes)


def judge(reference: Measurement, measurement: Measurement, precision: str, budgets: Mapping[str, float]) -> list[str]:
    """Why a measurement is refused: it lost more points of AP than its precision's budget, or nothing if it did not."""
    drop, budget = -measurement.delta_ap(reference), budgets[precision]
    if drop <= budget + _ROUNDING:
        return []
    return [f"lost {drop:.3f} points of AP, the budget of {precision} is {budget:g}"]


def _misdescribed(spec: ModelSpec, weights: ModelSpec) -> list[str]:
    """Where a description would have images handled otherwise than in training; wrong even where this split shows no loss."""
    pairs = ((field, getattr(spec, field), getattr(weights, field)) for field in _HANDLING)
    return [f"describes {field} as {mine}, the weights as {theirs}" for field, mine, theirs in pairs if mine != theirs]


def _manifest_notes(file: Path) -> tuple[str, ...]:
    """What is odd about the manifest beside a file; the accuracy measured here holds all the same."""
    path = manifest_path(file)
    try:
        return tuple(find_changes(path)) if path.is_file() else ("has no manifest beside it",)
    except ModelError as error:
        return (str(error),)
