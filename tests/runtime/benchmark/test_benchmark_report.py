"""Figures, table and plot of a benchmark whose timings are made up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from runtime.benchmark.clocks import Clocks
from runtime.benchmark.footprint import Footprint
from runtime.benchmark.load import Load
from runtime.benchmark.machine import Machine
from runtime.benchmark.plot import STAGE_COLORS, plot
from runtime.benchmark.report import ModelFacts, Protocol, Report, compare, row, table
from runtime.benchmark.stages import STAGES, BatchTiming
from runtime.detections import Detections
from runtime.viz.canvas import PAPER

HERE = Machine("Some CPU", 4, "Some GPU", 1.25, "Python 3.9", 2, "1")


def timings(count: int = 20, factor: float = 1, copy: bool = False, detections: int = 2) -> list[BatchTiming]:
    """Timing i took (1 + i / 100) times factor times 1, 2, (3,) 4, 5, 6 ms in the stages."""
    found = Detections.from_arrays([(0, 0, 1, 1)] * detections, [0.5] * detections, [0] * detections)
    stages = [stage for stage in STAGES if copy or stage != "copy"]
    return [
        BatchTiming({stage: (STAGES.index(stage) + 1) * factor * (1 + i / 100) for stage in stages}, 14, [found, found])
        for i in range(count)
    ]


def report(count: int = 20, batches: tuple[int, ...] = (2,), models: int = 2, copy: bool = False, seconds: float = 1) -> Report:
    took = Footprint(123.4, 50.2, {2: 160.6, 8: 301.4}, 77.7)
    facts = [ModelFacts(letter, f"{letter}.onnx", "tiny", "fp32", (64, 96), "Some Runtime 1", took) for letter in "AB"]
    mine, theirs = timings(count, seconds), timings(count, 2 * seconds, copy=copy)
    rows = [row(letter, batch, found) for batch in batches for letter, found in (("A", mine), ("B", theirs))[:models]]
    comparisons = [compare(batch, mine, theirs) for batch in batches if models == 2]
    return Report(HERE, Protocol(5, count, "8 images", 0.25), facts[:models], rows, comparisons, [], None)


def test_figures_are_those_of_the_laps() -> None:
    found = row("A", 2, timings(copy=True))
    assert list(found.milliseconds) == [*STAGES, "total"]
    assert found.milliseconds["infer"]["median"] == pytest.approx(4 * 1.095)
    assert found.milliseconds["total"]["median"] == pytest.approx(21 * 1.095)
    assert found.milliseconds["total"]["max"] == pytest.approx(21 * 1.19)
    assert found.images_per_second == pytest.approx(2 * 1000 / (21 * 1.095))
    assert found.inferences_per_second == pytest.approx(2 * 1000 / (4 * 1.095))
    assert (found.candidates, found.detections) == (7, 2)  # an image, of two in each batch


def test_ratios_are_of_the_same_round() -> None:
    slow = timings()
    doubled = [
        BatchTiming({stage: 2 * value for stage, value in timing.milliseconds.items()}, 0, timing.found) for timing in slow
    ]
    found = compare(2, doubled, slow).ratios
    assert list(found) == [stage for stage in (*STAGES, "total") if stage != "copy"]
    for ratio in found.values():
        assert ratio["min"] == pytest.approx(2) and ratio["max"] == pytest.approx(2)  # of medians alone this would not follow
    assert "copy" not in compare(2, timings(copy=True), slow).ratios


def test_table() -> None:
    lines = table(report(batches=(2, 8), copy=True)).splitlines()
    assert lines[0] == "on      Some CPU, 4 cores, Some GPU, load 1.2 before; Python 3.9 with 2 threads, OMP_NUM_THREADS 1"
    assert lines[1].startswith("how     5 + 20 rounds a batch size, the first 5 not counted, models in turns and in reverse")
    assert lines[2] == "A       A.onnx: tiny, fp32, 96x64, in Some Runtime 1"
    assert lines[3].strip() == (
        "a process of its own opens it in 123 ms and holds at most 161 MB at batch 2, 301 MB at batch 8, 78 MB of the GPU"
        " (50 MB before)"
    )
    assert lines[7].split("  ")[0] == "batch 2, ms" and lines[7].endswith("A / B (p5 to p95)")
    cells = {line.split()[0]: line.split()[1:] for line in lines[8:15]}
    assert list(cells) == [*STAGES, "total"]
    assert cells["copy"] == ["-", "-", "-", "6.06", "6.57", "7.08", "-"]
    assert cells["infer"][:6] == ["4.04", "4.38", "4.72", "8.08", "8.76", "9.44"]
    assert " ".join(cells["infer"][6:]) == "0.50 (0.50 to 0.50)"
    assert lines[15] == "A: 101.5 images/s, 456.6 in inference alone; 7.0 boxes an image before NMS, 2.0 after"
    assert len({len(line) for line in lines[7:15]}) == 1
    assert [line for line in lines if line.startswith("batch 8, ms")]


def test_what_a_gpu_adds_to_the_table() -> None:
    timed = [dataclasses.replace(timing, on_gpu=2.0) for timing in timings()]
    clocks = Clocks((1755, 1980), 1980, (2619, 2619), 61, None)
    load = Load("A", 2, 4, {"min": 1, "p5": 2, "median": 3, "p95": 4, "p99": 5, "max": 6}, 700)
    base = report(models=1)
    lines = table(dataclasses.replace(base, rows=[row("A", 2, timed)], loads=[load], clocks=clocks)).splitlines()
    assert lines[2] == "clocks  SM 1755 to 1980 of 1980 MHz, memory 2619 to 2619 MHz, up to 61 °C"
    assert [line.split() for line in lines if line.startswith("on the GPU")] == [["on", "the", "GPU", *["2.00"] * 3]]
    assert lines[-1] == (
        "A: 4 threads at once, 700.0 images/s in inference; a batch takes median 3.00, p95 4.00, p99 5.00, max 6.00 ms"
    )
    mixed = dataclasses.replace(report(), rows=[row("A", 2, timed), row("B", 2, timings())])
    assert [line.split()[3:] for line in table(mixed).splitlines() if line.startswith("on the GPU")] == [
        ["2.00"] * 3 + ["-"] * 4
    ]


def test_table_of_one_model_and_few_rounds() -> None:
    text = table(report(count=3, models=1))
    assert "turns" not in text and "A / B" not in text
    assert "A min  A median  A max" in text


def color_count(drawn: np.ndarray, stage: str) -> int:
    """Pixels of a stage's color, without its square in the legend."""
    return int((drawn == STAGE_COLORS[stage]).all(axis=2).sum()) - 17 * 17


@pytest.mark.parametrize("copy", [True, False])
def test_bars_are_as_long_as_the_medians(copy: bool) -> None:
    drawn = plot(report(models=2, copy=copy))
    preprocess, load = color_count(drawn, "preprocess"), color_count(drawn, "load")
    assert preprocess == pytest.approx(2 * load, rel=0.1)  # without texts in such short ones
    assert ((drawn == STAGE_COLORS["copy"]).all(axis=2).sum() > 0) == copy


def test_bars_are_of_one_image() -> None:
    """The same times for a batch of 8 are an eighth of those for one image."""
    drawn = plot(report(models=1, batches=(1, 8)))
    lengths = (drawn == STAGE_COLORS["preprocess"]).all(axis=2)[100:, drawn.shape[1] * 60 // 100 :].sum(axis=1)
    long, short = sorted(set(lengths[lengths > 0].tolist()), reverse=True)
    assert short == pytest.approx(long / 8, abs=1)


def test_inference_is_in_one_chart_and_the_rest_in_both() -> None:
    drawn = plot(report(models=1))
    infer = (drawn == STAGE_COLORS["infer"]).all(axis=2)[100:]  # below the legend
    rest = (drawn == STAGE_COLORS["decode"]).all(axis=2)[100:]
    middle = drawn.shape[1] * 60 // 100
    assert infer[:, :middle].any() and not infer[:, middle:].any()
    assert rest[:, :middle].sum() > 500 and rest[:, middle:].sum() > 500


@pytest.mark.parametrize("seconds", [1e-6, 1.0, 1e5])
@pytest.mark.parametrize(("batches", "models"), [((1,), 1), ((1, 8, 32, 1000), 2)])
def test_nothing_is_cut_off(seconds: float, batches: tuple[int, ...], models: int) -> None:
    drawn = plot(report(batches=batches, models=models, seconds=seconds, copy=True))
    assert drawn.dtype == np.uint8
    for edge in (drawn[:20], drawn[-20:], drawn[:, :20], drawn[:, -20:]):
        assert (edge == PAPER).all()


def test_long_names_are_written_to_their_end() -> None:
    def drawn(end: str) -> np.ndarray:
        base = report(models=1)
        facts = dataclasses.replace(base.models[0], runs_in="x" * 150 + end)
        return plot(dataclasses.replace(base, models=[facts]))

    assert not np.array_equal(drawn("i"), drawn("W"))
