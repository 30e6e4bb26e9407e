"""`python -m runtime.detect` from arguments to files, lines and exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import pytest

from runtime.backends.open import open_backend
from runtime.detect import main
from runtime.detector import Detector
from runtime.errors import InputError, ModelError
from runtime.media.image import read_image, write_image
from runtime.spec import ModelSpec
from tests.support.detect_command import RING, Command, lines, one_error, white


def test_json_lines(command: Command, tiny_onnx: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(main, "--engine", tiny_onnx, "--source", images, "--json")
    assert code == 0
    first, second = lines(out)
    assert list(first) == ["source", "width", "height", "detections"]
    assert (first["source"], first["width"], first["height"]) == (str(images / "a.png"), 128, 64)
    (found,) = first["detections"]
    assert list(found) == ["box", "score", "class_id", "class_name"]
    assert {key: found[key] for key in RING} == RING
    assert 0.9 < found["score"] < 1
    assert second == {"source": str(images / "b.jpg"), "width": 40, "height": 50, "detections": []}
    for name in ("empty.png", "notes.txt", "cut.jpg"):
        assert f"{name}: " in err
    assert "3 of 5 files skipped" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # --json alone writes no image


def test_images_go_to_runs_detect_unless_told(
    command: Command, tiny_onnx: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(main, "--engine", tiny_onnx, "--source", good)
    assert code == 0 and (tmp_path / "runs" / "detect" / "a.png").is_file() and "annotated images are in runs/detect" in err


def test_annotated_images_keep_their_names(command: Command, tiny_onnx: Path, images: Path, tmp_path: Path) -> None:
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", images, "--output", tmp_path / "out")
    assert code == 0
    assert out.splitlines() == [f"{images}/a.png: 1 ring", f"{images}/b.jpg: nothing found"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg"]
    drawn = read_image(tmp_path / "out" / "a.png")
    assert drawn.shape == (64, 128, 3) and (drawn[20, 64] != 255).any() and (drawn[40:] == 255).all()
    assert read_image(tmp_path / "out" / "b.jpg").max() == 0
    np.testing.assert_array_equal(read_image(images / "a.png"), white())


def test_json_and_images_together(command: Command, tiny_onnx: Path, good: Path, tmp_path: Path) -> None:
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", good, "--output", tmp_path / "out", "--json")
    assert code == 0 and len(lines(out)) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ((), 1),
        (("--conf", "0"), 100),
        (("--conf", "1"), 0),
        (("--conf", "0", "--max-detections", "3"), 3),
        (("--conf", "0", "--max-detections", "1000", "--iou", "1"), 336),
    ],
)
def test_options_reach_the_detector(
    options: tuple[str, ...], count: int, command: Command, tiny_onnx: Path, tmp_path: Path
) -> None:
    write_image(tmp_path / "a.png", white(64, 64))
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", tmp_path / "a.png", "--json", *options)
    assert (code, len(lines(out)[0]["detections"])) == (0, count)


@pytest.mark.parametrize(
    ("own", "options", "count"),
    [
        (None, (), 1),  # 0.25
        (0.5, (), 1),
        (1.0, (), 0),
        (1e-9, (), 1),
        (1e-12, (), 100),
        (1.0, ("--conf", "0.25"), 1),
        (0.5, ("--conf", "1"), 0),
    ],
)
def test_the_models_operating_threshold_is_the_default(
    own: Optional[float],
    options: tuple[str, ...],
    count: int,
    command: Command,
    write_onnx: Callable[..., Path],
    make_spec: Callable[..., ModelSpec],
    good: Path,
    tmp_path: Path,
) -> None:
    model = write_onnx(tmp_path / "own.onnx", spec=make_spec(operating_threshold=own))
    code, out, err = command(main, "--engine", model, "--source", good, "--json", *options)
    assert (code, len(lines(out)[0]["detections"])) == (0, count)
    said = f"detections have a score of at least {own:g}, the model's operating threshold\n" if own and not options else ""
    *told, last = err.splitlines(keepends=True)
    assert "".join(told) == said and last.startswith(f"1 image, {count} detection")
    assert ("nothing found: the best score is 0.989, below 1" in last) == (count == 0)


def test_a_glob_over_folders(command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_image(tmp_path / "in" / folder / "a.png", white())
    code, _, _ = command(main, "--engine", tiny_onnx, "--source", tmp_path / "in/**/*.png", "--output", tmp_path / "out")
    assert code == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("out/**/*.png")) == ["out/x/a.png", "out/y/a.png"]


@pytest.mark.parametrize("suffix", [".gif", ".pgm", ""])
def test_kinds_that_cannot_be_written_become_png(suffix: str, command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    source = tmp_path / f"a{suffix}"
    if suffix == ".gif" and not cv2.haveImageWriter("a.gif"):
        pytest.skip("OpenCV reads and writes GIF from version 4.11 on")
    source.write_bytes(cv2.imencode(suffix or ".png", white()[..., 0] if suffix == ".pgm" else white())[1].tobytes())
    code, _, _ = command(main, "--engine", tiny_onnx, "--source", source, "--output", tmp_path / "out")
    assert code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"a{suffix}.png"]


def test_batch_of_a_fixed_size(command: Command, write_onnx: Callable[..., Path], good: Path, tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "fixed.onnx", batch=4)
    code, out, _ = command(main, "--engine", model, "--source", good, "--json")
    assert code == 0 and lines(out)[0]["detections"][0]["box"] == RING["box"]


def test_the_backend_checks_what_it_is_given(tiny_onnx: Path) -> None:
    with open_backend(tiny_onnx) as backend:
        assert backend.batch_size is None
        maps = backend.infer(np.ones((3, 3, 64, 64), np.float32))
        assert [raw.shape for raw in maps] == [(3, 28, 2, 2), (3, 28, 4, 4), (3, 28, 8, 8)]
        assert {raw.dtype for raw in maps} == {np.dtype(np.float32)}
        for wrong in (np.ones((1, 3, 64, 32), np.float32), np.ones((1, 3, 64, 64)), np.ones((3, 64, 64), np.float32)):
            with pytest.raises(InputError, match=r"expected float32 \['N', 3, 64, 64\]"):
                backend.infer(wrong)
    backend.close()
    with pytest.raises(ModelError, match="was closed"):
        backend.infer(np.ones((1, 3, 64, 64), np.float32))


def test_a_fixed_batch_takes_no_other(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    with open_backend(write_onnx(tmp_path / "fixed.onnx", batch=2)) as backend:
        assert backend.batch_size == 2
        with pytest.raises(InputError, match=r"expected float32 \[2, 3, 64, 64\]"):
            backend.infer(np.ones((1, 3, 64, 64), np.float32))


def test_detector_opens_a_path(tiny_onnx: Path) -> None:
    with Detector(str(tiny_onnx)) as detector:
        np.testing.assert_allclose(detector(white()).boxes, [RING["box"]], atol=1e-3)


def test_the_command_line(tiny_onnx: Path, images: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        text = [sys.executable, "-m", "runtime.detect", "--engine", tiny_onnx, *map(str, arguments)]
        return subprocess.run(text, capture_output=True, text=True, timeout=60, check=False)

    done = call("--source", images, "--output", tmp_path / "out")
    assert done.returncode == 0
    assert done.stdout == f"{images}/a.png: 1 ring\n{images}/b.jpg: nothing found\n"
    runs_in, *further = done.stderr.splitlines()
    assert runs_in.startswith(f"{tiny_onnx} runs in ONNX Runtime ")
    assert [line.split(":")[0] for line in further] == ["skipped"] * 3 + [
        "3 of 5 files skipped",
        f"annotated images are in {tmp_path}/out",
        "2 images, 1 detection; ms per image",
    ]
    failed = call("--source", "gone")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert one_error(failed.stderr) == "error: gone: no such image, folder, video, or files of that pattern\n"
