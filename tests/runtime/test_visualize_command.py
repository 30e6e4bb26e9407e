"""`python -m runtime.visualize` from arguments to files, lines and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from runtime.media.image import read_image, write_image
from runtime.visualize import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, write_onnx: Callable[..., Path]) -> Path:
    return write_onnx(tmp_path_factory.mktemp("model") / "inspect.onnx", inspect=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two good images, a bad one and a video."""
    folder = tmp_path / "in"
    write_image(folder / "a.png", np.full((64, 128, 3), 255, np.uint8))
    write_image(folder / "b.jpg", np.zeros((50, 40, 3), np.uint8))
    (folder / "empty.png").write_bytes(b"")
    (folder / "film.mp4").write_bytes(b"")
    return folder


def test_one_figure_an_image(command: Command, engine: Path, images: Path, tmp_path: Path) -> None:
    out_folder = tmp_path / "out"
    code, out, err = command(main, "--engine", engine, "--source", images, "--output", out_folder)
    assert code == 0
    assert out.splitlines() == [f"{out_folder}/a.png", f"{out_folder}/b.jpg"]
    assert sorted(path.name for path in out_folder.iterdir()) == ["a.png", "b.jpg"]
    assert read_image(out_folder / "a.png").shape[1] == 48 + 118 + 4 * (300 + 14)
    assert "empty.png: the file is empty" in err
    assert "film.mp4: expected an image, got a video" in err
    assert "2 of 4 files skipped" in err


def test_the_score_chooses_what_is_drawn(command: Command, engine: Path, images: Path, tmp_path: Path) -> None:
    drawn = []
    for score in ("0.25", "1"):
        assert command(main, "--engine", engine, "--source", images / "a.png", "--output", tmp_path, "--conf", score)[0] == 0
        drawn.append(read_image(tmp_path / "a.png"))
    assert (drawn[0][24:324, 24:624] != 255).any() and (drawn[1][24:324, 24:624] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 20_000, 3), (20_000, 1, 3)])
def test_thin_images(shape: tuple[int, int, int], command: Command, engine: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.full(shape, 255, np.uint8))
    code, _, err = command(main, "--engine", engine, "--source", tmp_path / "a.png", "--output", tmp_path / "out")
    assert (code, err) == (0, "") and read_image(tmp_path / "out" / "a.png").size


def test_errors_are_one_line(
    command: Command,
    engine: Path,
    tiny_onnx: Path,
    images: Path,
    tmp_path: Path,
    full_disk: Callable[[], AbstractContextManager[None]],
) -> None:
    (tmp_path / "file").write_text("in the way")
    cases = [
        ((engine, tmp_path / "gone", tmp_path / "out"), "no such image"),
        ((tmp_path / "gone.onnx", images, tmp_path / "out"), "no such model file"),
        ((tiny_onnx, images, tmp_path / "out"), "python -m export.onnx --inspect"),
        ((engine, images, tmp_path / "file"), "choose another folder"),
        ((engine, images / "film.mp4", tmp_path / "out"), "expected an image, got a video"),
        ((engine, images / "empty.png", tmp_path / "out"), "the file is empty"),
    ]
    for (model, source, output), message in cases:
        code, out, err = command(main, "--engine", model, "--source", source, "--output", output)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, (message, err)
    code, _, err = command(main, "--engine", engine, "--source", images, "--output", tmp_path / "out", "--strict")
    assert code == 2 and "the file is empty" in err
    with full_disk():
        code, _, err = command(main, "--engine", engine, "--source", images, "--output", tmp_path / "full")
    assert code == 2 and "cannot write" in err and "skipped" not in err
