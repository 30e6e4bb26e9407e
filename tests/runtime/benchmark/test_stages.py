"""A batch in stages finds what the detector finds, and each stage is charged what it took."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.open import open_backend
from runtime.benchmark import stages
from runtime.benchmark.stages import STAGES, CopyingBackend, run
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.media.image import read_image, write_image
from runtime.spec import ModelSpec


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """White and black images of several sizes."""
    images = [
        np.full((height, width, 3), gray, np.uint8) for width, height, gray in ((64, 64, 255), (90, 40, 0), (33, 80, 255))
    ]
    for index, image in enumerate(images):
        write_image(tmp_path / f"{index}.png", image)
    return [tmp_path / f"{index}.png" for index in range(len(images))]


def test_it_finds_what_the_detector_finds(tiny_onnx: Path, files: list[Path]) -> None:
    with open_backend(tiny_onnx) as backend:
        detector = Detector(backend, score_threshold=0.5)
        expected = detector([read_image(file) for file in files])
        timing = run(backend, detector, files)
        assert [len(found) for found in expected] == [1, 0, 1]
        for ours, theirs in zip(timing.found, expected):
            assert np.array_equal(ours.boxes, theirs.boxes) and np.array_equal(ours.scores, theirs.scores)
        assert timing.candidates == 2
        assert set(timing.milliseconds) == set(STAGES) - {"copy"}
        assert min(timing.milliseconds.values()) > 0


def test_a_file_that_is_no_image_is_named(tiny_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no image")
    with open_backend(tiny_onnx) as backend, pytest.raises(InputError, match=r"note\.txt: not an image"):
        run(backend, Detector(backend), [tmp_path / "note.txt"])


@pytest.mark.parametrize(("copies", "times"), [(True, True), (True, False), (False, False)])
def test_each_stage_is_charged_what_it_took(
    copies: bool, times: bool, make_spec: Callable[..., ModelSpec], files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, now = make_spec(), [5.0]

    class Backend:
        batch_size = None
        title = "made up"

        def __init__(self) -> None:
            self.spec = spec

        def infer(self, images: np.ndarray) -> list[np.ndarray]:
            assert images.shape == (3, 3, 64, 64)
            now[0] += 0.05
            return [np.full((len(images), *spec.map_shape(level)), -40, np.float32) for level in range(3)]

        def close(self) -> None: ...

        def __enter__(self) -> Any: ...

        def __exit__(self, *error: Any) -> None: ...

    class Copying(Backend):
        def copy(self, images: np.ndarray) -> None:
            assert images.shape == (3, 3, 64, 64)
            now[0] += 0.02

    class Timed(Copying):
        def infer_timed(self, images: np.ndarray) -> tuple[list[np.ndarray], float]:
            return self.infer(images), 42.0

        def compile_at_once(self) -> None: ...

    def taking(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            now[0] += seconds
            return call(*arguments)

        return slow

    backend: Any = Timed() if times else Copying() if copies else Backend()
    assert isinstance(backend, CopyingBackend) == copies
    detector: Any = Detector(backend)
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(stages, "read_image", taking(0.001, stages.read_image))
    monkeypatch.setattr(stages, "preprocess", taking(0.002, stages.preprocess))
    monkeypatch.setattr(detector, "candidates", taking(0.003, detector.candidates))
    monkeypatch.setattr(detector, "select", taking(0.004, detector.select))
    timing = run(backend, detector, files)
    expected = {
        "load": 3,
        "preprocess": 6,
        "infer": 30 if copies else 50,
        "decode": 9,
        "NMS": 12,
        **({"copy": 20} if copies else {}),
    }
    assert timing.milliseconds == pytest.approx(expected)
    assert timing.on_gpu == (42.0 if times else None)
    assert timing.total == pytest.approx(80)  # copying is a part of inference, not one more
