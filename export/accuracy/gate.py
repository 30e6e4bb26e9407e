"""Accuracy gate: scores every exported file as PyTorch was scored, and passes those shown to keep within their budget."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.budget import FAILED, PASSED, UNDECIDED
from calibration.images import find_shared, group_copies
from export.accuracy.consumers import ConsumerLoss, measure_consumers
from export.accuracy.limits import Limits, check_classes
from export.accuracy.measure import Measurement, first_images, measure
from export.accuracy.operating import OperatingChange, compare_operating, operating_threshold
from export.accuracy.speed import Speedup, measure_speedup
from export.accuracy.verdict import Criterion, assess, assess_operating
from runtime.backends.base import Backend
from runtime.backends.open import open_backend
from runtime.datasets.dataset import Dataset
from runtime.errors import CheckFailed, InputError, MissingComponentError, ModelError
from runtime.manifest import find_changes, manifest_path, read_manifest
from runtime.ops.image import Image
from runtime.spec import ModelSpec
from train.torch_backend import open_torch_backend

log = logging.getLogger(__name__)

NOT_RUN = "built, not run"

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
        status: `passed`, `failed`, `undecided` or `built, not run`.
        reasons: for anything but a pass, one line each.
        notes: oddities that do not fail the file, one line each.
        criteria: the limits that were applied, AP over all classes first; none where it did not run to the end.
        operating: change of the detections at the operating threshold; None where it did not run to the end.
        speedup: against the FP32 file among the files; None where there is none, or where it did not run.
        consumers: what the preprocessing of other programs costs; it is no part of the verdict.
    """

    name: str
    file: Path
    spec: ModelSpec | None
    measurement: Measurement | None
    status: str
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    operating: OperatingChange | None = None
    speedup: Speedup | None = None
    consumers: tuple[ConsumerLoss, ...] = ()


@dataclass(frozen=True)
class Verification:
    """Measurement of the weights in PyTorch, and the verdict on each file made from them.

    Attributes:
        weights: their file.
        spec: their spec, at the input size of the files.
        dataset: the split that was scored.
        limits: what was asked of the files.
        reference: measurement of the weights in PyTorch.
        outcomes: verdicts, in the order of the files.
    """

    weights: Path
    spec: ModelSpec
    dataset: Dataset
    limits: Limits
    reference: Measurement
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """True if no file failed or, unless that is accepted, is undecided; files that cannot run here are not counted."""
        refused = {FAILED} if self.limits.accept_undecided else {FAILED, UNDECIDED}
        return all(outcome.status not in refused for outcome in self.outcomes)


def verify(
    weights: Path, files: Sequence[Path], dataset: Dataset, limits: Limits, consumers: Sequence[str] = ()
) -> Verification:
    """Scores the weights in PyTorch and every file, at the files' own input size, and judges each by its budget.

    Args:
        weights: anything `train.weights.open_weights` takes.
        files: .onnx and .engine files made from them, all of one input size.
        dataset: the split to score on.
        limits: what is asked of the files.
        consumers: programs whose preprocessing is measured with each file too, of `CONSUMERS`.

    Raises:
        InputError: a file cannot be used, is no export of such weights, or the files differ in input size; a budget names no
            class of the model.
        CheckFailed: the weights reach an AP of 0 on this split, so a loss could not be seen.
        MissingComponentError: none of the files can be run here.
    """
    with open_files(files) as opened:
        pytorch = open_torch_backend(weights, _common_size(opened))
        spec = pytorch.spec
        check_classes(limits.budgets, spec.class_names)
        for exported in opened:
            if exported.backend:
                _check_same_model(exported.file, exported.backend.spec, spec)
        _check_speed_reference(opened, limits)
        log.info("scoring PyTorch on %d images", len(dataset))
        reference = measure("PyTorch", pytorch, weights, dataset)
        if reference.evaluation.ap <= 0:
            raise CheckFailed(
                f"{weights} reaches an AP of 0 on {dataset.split} of {dataset.root}, so a loss could not be seen;"
                " use trained weights, and a split with the objects they were trained on"
            )
        groups = group_copies(dataset, reference.evaluation.matches.image_ids)
        outcomes = [_examine(exported, pytorch, reference, dataset, groups, limits) for exported in opened]
        for number, (exported, found) in enumerate(zip(opened, outcomes)):
            if exported.backend and found.measurement:
                name, file, backend = exported.name, exported.file, exported.backend
                losses = measure_consumers(consumers, name, file, backend, reference, dataset, groups, limits.confidence)
                outcomes[number] = replace(found, consumers=losses, notes=(*found.notes, *map(str, losses)))
        outcomes = _judge_speed(opened, outcomes, first_images(dataset, 1)[0], limits.require_speedup)
    return Verification(weights, spec, dataset, limits, reference, tuple(outcomes))


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
    exported: ExportedFile,
    pytorch: Backend,
    reference: Measurement,
    dataset: Dataset,
    groups: NDArray[np.intp],
    limits: Limits,
) -> Outcome:
    name, file, backend = exported.name, exported.file, exported.backend
    faults, notes = _manifest_faults(file)
    faults = (*faults, *_leaks(file, dataset))
    if backend is None:
        return Outcome(name, file, None, None, FAILED if faults else NOT_RUN, (*faults, exported.reason), notes)
    spec = backend.spec
    if spec.source_sha256 != pytorch.spec.source_sha256:
        foreign = f"its spec names other weights as its source ({spec.source_sha256[:12] or 'none'}...)"
        if limits.allow_foreign:
            notes = (foreign, *notes)
        else:
            faults = (f"{foreign}; export these weights again, or accept it with --allow-foreign", *faults)
    log.info("scoring %s", name)
    try:
        measurement = measure(name, backend, file, dataset, pytorch)
    except ModelError as error:  # it opened but does not run, or computes NaN: damaged
        return Outcome(name, file, spec, None, FAILED, (str(error), *faults), notes)
    before, after = reference.evaluation, measurement.evaluation
    different = int(groups.max()) + 1
    if different < len(groups):
        notes = (
            *notes,
            f"{len(groups) - different} of the {len(groups)} images are copies of others; the bounds count them once",
        )
    operating = compare_operating(before, after, operating_threshold(pytorch.spec), limits.confidence, groups)
    criteria = assess(before.matches, after.matches, spec.precision, limits, groups)
    criteria += assess_operating(operating, different, limits)
    faults = (*faults, *_spec_faults(spec, pytorch.spec))
    missed = [item for item in criteria if item.status != PASSED]
    reasons = (*(item.reason for item in missed), *faults)
    failed = faults or any(item.status == FAILED for item in missed)
    status = FAILED if failed else UNDECIDED if missed else PASSED
    return Outcome(name, file, spec, measurement, status, reasons, notes, criteria, operating)


def _check_speed_reference(opened: Sequence[ExportedFile], limits: Limits) -> None:
    """Raises InputError where speed is required of an INT8 file and there is no FP32 file to be faster than."""
    precisions = {item.backend.spec.precision for item in opened if item.backend}
    if limits.require_speedup is not None and "int8" in precisions and "fp32" not in precisions:
        raise InputError("--require-speedup: the INT8 file is timed against the FP32 file; give that too")


def _judge_speed(
    opened: Sequence[ExportedFile], outcomes: Sequence[Outcome], image: Image, required: float | None
) -> list[Outcome]:
    """Times the files that ran against the FP32 one; an INT8 file that is not faster is told, or fails if speed is required."""
    backends = {item.name: item.backend for item, found in zip(opened, outcomes) if item.backend and found.measurement}
    reference = next((name for name, backend in backends.items() if backend.spec.precision == "fp32"), None)
    if reference is None:
        return list(outcomes)
    others = {name: backend for name, backend in backends.items() if name != reference}
    speedups = measure_speedup(backends[reference], others, image)
    return [_with_speed(item, speedups[item.name], required) if item.name in speedups else item for item in outcomes]


def _with_speed(outcome: Outcome, speedup: Speedup, required: float | None) -> Outcome:
    found = replace(outcome, speedup=speedup)
    if outcome.spec is None or outcome.spec.precision != "int8":
        return found
    ratio = f"{speedup.ratio:.2f} ({speedup.low:.2f} to {speedup.high:.2f})"
    if required is not None and speedup.ratio < required:
        reason = f"runs at {ratio} of the speed of FP32 here, {required:g} is required"
        return replace(found, status=FAILED, reasons=(*outcome.reasons, reason))
    if speedup.ratio <= 1:
        return replace(found, notes=(*outcome.notes, f"is not faster than FP32 on this machine: {ratio} of its speed"))
    return found


def _spec_faults(spec: ModelSpec, weights: ModelSpec) -> list[str]:
    """Lists where a spec handles images otherwise than in training; wrong even where this split shows no loss."""
    pairs = ((field, getattr(spec, field), getattr(weights, field)) for field in _HANDLING)
    return [f"its spec says {field} is {mine}, that of the weights {theirs}" for field, mine, theirs in pairs if mine != theirs]


def _manifest_faults(file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lists what the manifest beside a file says against it, and what is merely odd."""
    path = manifest_path(file)
    if not path.is_file():
        return (), ("has no manifest beside it",)
    try:
        return tuple(find_changes(path)), ()
    except ModelError as error:
        return (str(error),), ()


def _leaks(file: Path, dataset: Dataset) -> tuple[str, ...]:
    """Tells whether images of the split were used to make the file, by the hashes in its manifest and its origins'."""
    used: set[str] = set()
    for path in (file, *_origins(file)):
        try:
            details = read_manifest(manifest_path(path)).details
            calibration = details.get("calibration") or {}
            for part in (calibration, calibration.get("search") or {}, details.get("recovery") or {}):
                used |= {image["sha256"] for image in part.get("images", ())}
        except (InputError, KeyError, TypeError, AttributeError):  # no manifest, or one without such images
            continue
    shared = find_shared(used, None, dataset)
    if not shared:
        return ()
    name = shared[0].path.name
    return (f"{len(shared)} images of the split were used to make it (such as {name}): verify it on others",)


def _origins(file: Path) -> list[Path]:
    """Returns the files that it was made from, where its manifest names them."""
    try:
        return [file.parent / item.name for item in read_manifest(manifest_path(file)).made_from]
    except InputError:
        return []
