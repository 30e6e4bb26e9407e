"""The examples in docstrings do what they say: a model, two images and a video lie where they look for them."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.media.image import write_image
from runtime.media.video_writer import write_video

ROOT = Path(runtime.__file__).parent
MODULES = sorted(
    ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
    for file in ROOT.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    black, white = np.zeros((64, 128, 3), np.uint8), np.full((64, 128, 3), 255, np.uint8)
    shutil.copy(tiny_onnx, tmp_path / "model.onnx")
    write_image(tmp_path / "street.jpg", white)
    write_image(tmp_path / "night.jpg", black)
    with write_video(tmp_path / "film.mp4") as write:
        write(black, 0)
        write(white, 0.04)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed


def test_the_detector_is_shown() -> None:
    assert {"runtime.detector", "runtime.detections", "runtime.media.video"} <= set(MODULES)
