"""Holds the results of a benchmark and formats them as a table. Every time is a spread, see `timing.spread`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from runtime.benchmark.clocks import Clocks
from runtime.benchmark.footprint import Footprint
from runtime.benchmark.load import Load
from runtime.benchmark.machine import Machine
from runtime.benchmark.stages import STAGES, BatchTiming
from runtime.benchmark.timing import ends, spread

TOTAL = "total"
ON_GPU = "on the GPU"

Spread = dict[str, float]


@dataclass(frozen=True)
class ModelFacts:
    """A model that was measured.

    Attributes:
        letter: `A` or `B`.
        file: its path, or address.
        name: of the model.
        precision: `fp32`, `fp16` or `int8`.
        input_size: (height, width) in pixels.
        runs_in: library, version, device.
        footprint: time and memory in a process of its own, None where it is not known.
    """

    letter: str
    file: str
    name: str
    precision: str
    input_size: tuple[int, int]
    runs_in: str
    footprint: Optional[Footprint]


@dataclass(frozen=True)
class Protocol:
    """Settings of a benchmark.

    Attributes:
        warm_up: rounds before the counted ones, for each batch size.
        repeats: rounds that count.
        images: description of the images.
        score_threshold: of the boxes that reach NMS.
    """

    warm_up: int
    repeats: int
    images: str
    score_threshold: float


@dataclass(frozen=True)
class Row:
    """One model with batches of one size.

    Attributes:
        letter: of the model.
        batch: the size.
        milliseconds: of a whole batch, by stage and `total`; without `copy` where there is none or it is part of `infer`;
            with `on the GPU`, for infer and copy by CUDA events, where there is one.
        images_per_second: from files to detections, at the median time.
        inferences_per_second: images a second of the stage `infer` alone, at its median time.
        candidates: mean number of boxes an image before NMS.
        detections: mean number of boxes an image after NMS.
    """

    letter: str
    batch: int
    milliseconds: dict[str, Spread]
    images_per_second: float
    inferences_per_second: float
    candidates: float
    detections: float


@dataclass(frozen=True)
class Comparison:
    """The first model against the second with batches of one size.

    Attributes:
        batch: the size.
        ratios: time of the first / time of the second in the same round, by stage and `total`.
    """

    batch: int
    ratios: dict[str, Spread]


@dataclass(frozen=True)
class Report:
    """All results of a benchmark."""

    machine: Machine
    protocol: Protocol
    models: list[ModelFacts]
    rows: list[Row]
    comparisons: list[Comparison]
    loads: list[Load]
    clocks: Optional[Clocks]


def times(timings: Sequence[BatchTiming]) -> dict[str, list[float]]:
    """Lists the milliseconds of each timing, by stage and `total`."""
    stages = {name: [timing.milliseconds[name] for timing in timings] for name in STAGES if name in timings[0].milliseconds}
    on_gpu = [timing.on_gpu for timing in timings if timing.on_gpu is not None]
    return {**stages, TOTAL: [timing.total for timing in timings], **({ON_GPU: on_gpu} if on_gpu else {})}


def row(letter: str, batch: int, timings: Sequence[BatchTiming]) -> Row:
    """Summarizes the timings of one model."""
    found = {name: spread(values) for name, values in times(timings).items()}
    images = batch * len(timings)
    return Row(
        letter,
        batch,
        found,
        images_per_second=batch * 1e3 / found[TOTAL]["median"],
        inferences_per_second=batch * 1e3 / found["infer"]["median"],
        candidates=sum(timing.candidates for timing in timings) / images,
        detections=sum(len(boxes) for timing in timings for boxes in timing.found) / images,
    )


def compare(batch: int, first: Sequence[BatchTiming], second: Sequence[BatchTiming]) -> Comparison:
    """Computes ratios of timings of the same rounds, of the stages that both models have."""
    mine, theirs = times(first), times(second)
    ratios = {name: [a / b for a, b in zip(mine[name], theirs[name])] for name in mine if name in theirs}
    return Comparison(batch, {name: spread(values) for name, values in ratios.items()})


def table(report: Report) -> str:
    """Formats a report for people."""
    blocks = ["\n".join(_header(report))]
    blocks += ["\n".join(_block(batch, report)) for batch in dict.fromkeys(found.batch for found in report.rows)]
    return "\n\n".join(blocks)


def _header(report: Report) -> Iterable[str]:
    here, protocol = report.machine, report.protocol
    gpu, load = f", {here.gpu}" if here.gpu else "", "" if here.load is None else f", load {here.load:.1f} before"
    omp = f", OMP_NUM_THREADS {here.omp_threads}" if here.omp_threads else ""
    yield f"on      {here.cpu}, {here.cores} cores{gpu}{load}; {here.versions} with {here.opencv_threads} threads{omp}"
    turns = ", models in turns and in reverse order every other round" if len(report.models) > 1 else ""
    yield (
        f"how     {protocol.warm_up} + {protocol.repeats} rounds a batch size, the first {protocol.warm_up} not counted{turns};"
        f" {protocol.images}; scores from {protocol.score_threshold:g}"
    )
    if report.clocks:
        yield f"clocks  {report.clocks}"
    for model in report.models:
        height, width = model.input_size
        yield f"{model.letter}       {model.file}: {model.name}, {model.precision}, {width}x{height}, in {model.runs_in}"
        if model.footprint:
            took = model.footprint
            peaks = ", ".join(f"{peak:.0f} MB at batch {batch}" for batch, peak in took.peaks.items())
            gpu_memory = "" if not took.gpu else f", {took.gpu:.0f} MB of the GPU"
            yield (
                f"        a process of its own opens it in {took.opening:.0f} ms and holds at most {peaks}{gpu_memory}"
                f" ({took.before:.0f} MB before)"
            )


def _block(batch: int, report: Report) -> list[str]:
    """Formats the table of one batch size."""
    rows = [found for found in report.rows if found.batch == batch]
    ratios = next((found.ratios for found in report.comparisons if found.batch == batch), {})
    shown = [name for name in rows[0].milliseconds[TOTAL] if name not in ("min", "max")]
    if len(shown) == 1:  # too few rounds for percentiles
        shown = ["min", "median", "max"]
    cells = [[f"batch {batch}, ms", *(f"{found.letter} {name}" for found in rows for name in shown)]]
    stages = (*STAGES, TOTAL, *([ON_GPU] if any(ON_GPU in found.milliseconds for found in rows) else []))
    for stage in stages:
        figures = [_times(found.milliseconds.get(stage), shown) for found in rows]
        cells.append([stage, *(cell for part in figures for cell in part)])
    if ratios:
        low, high = ends(ratios[TOTAL])
        cells[0].append(f"A / B ({low} to {high})")
        for line, stage in zip(cells[1:], stages):
            line.append(_ratio(ratios.get(stage)))
    lines = _aligned(cells)
    lines += [
        f"{found.letter}: {found.images_per_second:.1f} images/s, {found.inferences_per_second:.1f} in inference alone;"
        f" {found.candidates:.1f} boxes an image before NMS, {found.detections:.1f} after"
        for found in rows
    ]
    lines += [
        f"{load.letter}: {load.threads} threads at once, {load.images_per_second:.1f} images/s in inference; a batch takes "
        + ", ".join(f"{name} {load.milliseconds[name]:.2f}" for name in load.milliseconds if name not in ("min", "p5"))
        + " ms"
        for load in report.loads
        if load.batch == batch
    ]
    return lines


def _times(figures: Optional[Mapping[str, float]], shown: Sequence[str]) -> list[str]:
    return ["-"] * len(shown) if figures is None else [f"{figures[name]:.2f}" for name in shown]


def _ratio(figures: Optional[Mapping[str, float]]) -> str:
    if figures is None:
        return "-"
    low, high = ends(figures)
    return f"{figures['median']:.2f} ({figures[low]:.2f} to {figures[high]:.2f})"


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Aligns columns of text: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]).rstrip()
        for line in cells
    ]
