"""`python -m runtime.benchmark` from arguments to figures, files and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.benchmark import __main__ as benchmark
from runtime.benchmark import footprint
from runtime.benchmark.__main__ import main
from runtime.benchmark.footprint import Footprint
from runtime.benchmark.images import made_up_image
from runtime.benchmark.stages import STAGES, BatchTiming
from runtime.media.image import read_image, write_image

Command = Callable[..., tuple[int, str, str]]
QUICK = ("--repeats", "3", "--warm-up", "1")


@pytest.fixture
def footprints(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of new processes, which are not started."""
    asked: list[tuple[Any, ...]] = []

    def measure(*arguments: Any) -> Footprint:
        asked.append(arguments)
        return Footprint(10, 50, dict.fromkeys(arguments[2], 60.0), None)

    monkeypatch.setattr(footprint, "measure", measure)
    return asked


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the files of each batch that was run."""
    batches: list[list[str]] = []
    real = benchmark.run

    def watch(backend: Any, detector: Any, files: list[Path]) -> BatchTiming:
        batches.append([file.name for file in files])
        return real(backend, detector, files)

    monkeypatch.setattr(benchmark, "run", watch)
    return batches


def test_one_model_as_json(command: Command, tiny_onnx: Path) -> None:
    code, out, err = command(main, "--engine", tiny_onnx, "--batch", "1,4", "--json", *QUICK)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert list(report) == ["machine", "protocol", "models", "rows", "comparisons", "loads", "clocks"]
    assert report["protocol"] == {
        "warm_up": 1,
        "repeats": 3,
        "images": "8 made-up JPEG images of 640x480",
        "score_threshold": 0.25,
    }
    (model,) = report["models"]
    assert (model["letter"], model["file"], model["input_size"]) == ("A", str(tiny_onnx), [64, 64])
    assert model["runs_in"].startswith("ONNX Runtime")
    assert set(model["footprint"]["peaks"]) == {"1", "4"}  # of a process that really ran
    assert [(found["letter"], found["batch"]) for found in report["rows"]] == [("A", 1), ("A", 4)]
    for found in report["rows"]:
        assert list(found["milliseconds"]) == [stage for stage in (*STAGES, "total") if stage != "copy"]
        assert found["images_per_second"] == pytest.approx(found["batch"] * 1e3 / found["milliseconds"]["total"]["median"])
    assert report["comparisons"] == []


def test_latency_under_load(command: Command, tiny_onnx: Path, footprints: list[tuple[Any, ...]]) -> None:
    code, out, _ = command(main, "--engine", tiny_onnx, "--batch", "1,2", "--threads", 3, "--json", *QUICK)
    loads = json.loads(out)["loads"]
    assert code == 0 and [(load["batch"], load["threads"]) for load in loads] == [(1, 3), (2, 3)]
    code, out, _ = command(main, "--engine", tiny_onnx, "--threads", 2, *QUICK)
    assert code == 0 and "A: 2 threads at once, " in out


def test_two_models_see_the_same_images_in_turns(
    command: Command, tiny_onnx: Path, footprints: list[tuple[Any, ...]], seen: list[list[str]]
) -> None:
    code, out, _ = command(
        main, "--engine", tiny_onnx, "--compare", tiny_onnx, "--compare-backend", "onnxruntime", "--batch", 3, "--json", *QUICK
    )
    assert code == 0
    report = json.loads(out)
    assert [model["letter"] for model in report["models"]] == ["A", "B"]
    assert [comparison["batch"] for comparison in report["comparisons"]] == [3]
    assert footprints == [(str(tiny_onnx), "auto", (3,)), (str(tiny_onnx), "onnxruntime", (3,))]
    rounds = [
        ["0.jpg", "1.jpg", "2.jpg"],
        ["3.jpg", "4.jpg", "5.jpg"],
        ["6.jpg", "7.jpg", "0.jpg"],
        ["1.jpg", "2.jpg", "3.jpg"],
    ]
    assert seen == [files for files in rounds for _ in range(2)]


def test_a_table_and_a_plot(command: Command, tiny_onnx: Path, tmp_path: Path, footprints: list[tuple[Any, ...]]) -> None:
    image = tmp_path / "new" / "times.png"
    code, out, err = command(main, "--engine", tiny_onnx, "--compare", tiny_onnx, "--plot", image, *QUICK)
    assert code == 0 and err == f"the plot is {image}\n"
    assert "batch 1, ms" in out and "A / B (min to max)" in out and "\nB: " in out
    assert read_image(image).shape[1] > 600


def test_a_fixed_batch_is_measured_alone(
    command: Command, write_onnx: Callable[..., Path], tiny_onnx: Path, tmp_path: Path, footprints: list[tuple[Any, ...]]
) -> None:
    fixed = write_onnx(tmp_path / "fixed.onnx", batch=2)
    code, out, err = command(main, "--engine", tiny_onnx, "--compare", fixed, "--batch", "1,2", "--json", *QUICK)
    assert (code, err) == (0, f"{fixed} takes batches of 2 alone; other sizes are left out\n")
    report = json.loads(out)
    assert [(found["batch"], found["letter"]) for found in report["rows"]] == [(1, "A"), (2, "A"), (2, "B")]
    assert [found["batch"] for found in report["comparisons"]] == [2]
    assert [asked[2] for asked in footprints] == [(1, 2), (2,)]
    code, out, err = command(main, "--engine", tiny_onnx, "--compare", fixed, "--batch", "1,4", *QUICK)
    assert (code, out) == (2, "")
    assert err == f"error: {fixed}: takes batches of 2 alone; measure it with --batch 2\n"


def test_images_of_a_folder(
    command: Command, tiny_onnx: Path, tmp_path: Path, footprints: list[tuple[Any, ...]], seen: list[list[str]]
) -> None:
    folder = tmp_path / "images"
    for name, gray in (("a.png", 255), ("b.png", 0)):
        write_image(folder / name, np.full((64, 64, 3), gray, np.uint8))
    (folder / "notes.txt").write_text("no image")
    code, out, err = command(main, "--engine", tiny_onnx, "--source", folder, "--batch", "2", "--json", *QUICK)
    assert code == 0 and "skipped: " in err and "notes.txt" in err
    report = json.loads(out)
    assert report["protocol"]["images"] == f"2 images of {folder}"
    assert report["rows"][0]["detections"] == report["rows"][0]["candidates"] == 0.5  # one in the white image
    assert {tuple(files) for files in seen} == {("a.png", "b.png")}
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", folder / "a.png", "--conf", "1", "--json", *QUICK)
    assert code == 0 and json.loads(out)["protocol"]["images"] == str(folder / "a.png")
    assert json.loads(out)["rows"][0]["candidates"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "1,0"), "expected a whole number of at least 1, got 0"),
        (("--batch", "1;8"), "expected batch sizes with commas between them, got 1;8"),
        (("--repeats", "0"), "expected a whole number of at least 1"),
        (("--conf", "2"), "expected a number in 0-1"),
        (("--compare-backend", "fast"), "invalid choice: 'fast'"),
        (("--plot", "times.jpg"), "--plot times.jpg: expected a name ending in .png"),
        (("--source", "gone"), "gone: no such image"),
        (("--compare", "gone.onnx"), "gone.onnx: no such model file"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str, command: Command, tiny_onnx: Path) -> None:
    code, out, err = command(main, "--engine", tiny_onnx, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_made_up_images_are_about_as_hard_as_photographs() -> None:
    one, same, other = (made_up_image(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one.shape == (480, 640, 3) and one.dtype == np.uint8
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert 0.1e6 < len(cv2.imencode(".jpg", one)[1]) < 0.25e6  # COCO's images of this size: 0.15 MB
