"""Accuracy gate: scores every exported file as PyTorch was scored, and refuses one that loses more AP than its budget."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.budget import BUDGETS, is_within
from export.accuracy.measure import Measurement, measure
from runtime.backends.base import Backend
from runtime.backends.open import open_backend
from runtime.datasets.dataset import Dataset
from runtime.errors import CheckFailed, InputError, MissingComponentError, ModelError
from runtime.manifest import find_changes, manifest_path
from runtime.spec import PRECISIONS, ModelSpec
from train.torch_backend import open_torch_backend

log = logging.getLogger(__name__)

PASSED, FAILED, NOT_RUN = "passed", "failed", "built, not run"

# A file whose spec differs in one of these was made from other weights.
_IDENTITY = ("class_names", "anchors", "strides")
# A file whose spec differs in one of these is run otherwise than it was trained.
_HANDLING = ("resize", "pad_value", "mean", "std", "color", "score_threshold", "nms_threshold")


@dataclass(frozen=True)
class ExportedFile:
    """Exported file to be judged.

    Attributes:
        name: what the table calls it.
        file: its path.
        backend: runs it; None where this machine cannot.
        reason: why this machine cannot run it.
    """

    name: str
    file: Path
    backend: Backend | None
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """Verdict on one exported file.

    Attributes:
        name: what the table calls it.
        file: its path.
        spec: its spec; None where it was not opened.
        measurement: its accuracy, size and speed; None where it did not run to the end.
        status: `passed`, `failed` or `built, not run`.
        reasons: for anything but a pass, one line each.
        notes: oddities that do not fail the file, one line each.
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
    """Measurement of the weights in PyTorch, and the verdict on each file made from them.

    Attributes:
        weights: their file.
        spec: their spec, at the input size of the files.
        dataset: the split that was scored.
        budgets: points of AP that a file may lose, by precision.
        reference: measurement of the weights in PyTorch.
        outcomes: verdicts, in the order of the files.
    """

    weights: Path
    spec: ModelSpec
    dataset: Dataset
    budgets: Mapping[str, float]
    reference: Measurement
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """True if no file failed; files that cannot be run here are not counted."""
        return all(outcome.status != FAILED for outcome in self.outcomes)


def parse_budgets(text: str) -> dict[str, float]:
    """Parses budgets in points of AP: `0.5` for all, or `fp32=0.05,int8=1`, where the others keep their default.

    Raises:
        InputError: an unknown precision, or anything but a number from 0 on.
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
    """Scores the weights in PyTorch and every file, at the files' own input size, and judges each by its budget.

    Args:
        weights: anything `train.weights.open_weights` takes.
        files: .onnx and .engine files made from them, all of one input size.
        dataset: the split to score on.
        budgets: points of AP that a file may lose, by precision.

    Raises:
        InputError: a file cannot be used, is no export of such weights, or the files differ in input size.
        CheckFailed: the weights reach an AP of 0 on this split, so a loss could not be seen.
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
    """Opens every file before any long work; an engine that this machine cannot run is kept with the reason.

    Raises:
        InputError: a file cannot be used.
        MissingComponentError: none of them can be run here.
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
    """Returns the input size of all files. AP depends on it, so one reference in PyTorch serves one size only."""
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
    foreign = ("its spec names other weights as its source",)
    notes = (foreign if spec.source_sha256 != pytorch.spec.source_sha256 else ()) + _manifest_notes(file)
    log.info("scoring %s", name)
    try:
        measurement = measure(name, backend, file, dataset, pytorch)
    except ModelError as error:  # it opened but does not run, or computes NaN: damaged
        return Outcome(name, file, spec, None, FAILED, (str(error),), notes)
    reasons = judge(reference, measurement, spec.precision, budgets) + _spec_faults(spec, pytorch.spec)
    return Outcome(name, file, spec, measurement, FAILED if reasons else PASSED, tuple(reasons), notes)


def judge(reference: Measurement, measurement: Measurement, precision: str, budgets: Mapping[str, float]) -> list[str]:
    """Returns the reason to refuse a measurement: a loss of AP beyond its precision's budget; none if it keeps within it."""
    drop, budget = -measurement.delta_ap(reference), budgets[precision]
    if is_within(drop, budget):
        return []
    return [f"lost {drop:.3f} points of AP, the budget of {precision} is {budget:g}"]


def _spec_faults(spec: ModelSpec, weights: ModelSpec) -> list[str]:
    """Lists where a spec handles images otherwise than in training; wrong even where this split shows no loss."""
    pairs = ((field, getattr(spec, field), getattr(weights, field)) for field in _HANDLING)
    return [f"its spec says {field} is {mine}, that of the weights {theirs}" for field, mine, theirs in pairs if mine != theirs]


def _manifest_notes(file: Path) -> tuple[str, ...]:
    """Lists what is wrong with the manifest beside a file; the measured accuracy holds all the same."""
    path = manifest_path(file)
    try:
        return tuple(find_changes(path)) if path.is_file() else ("has no manifest beside it",)
    except ModelError as error:
        return (str(error),)
