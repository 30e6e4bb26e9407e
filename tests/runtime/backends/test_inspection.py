"""Fusion weights and activations of a file: both resize modes, sizes that are not square, fixed batches, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.inspection import InspectableBackend, Inspection, inspection_shapes
from runtime.backends.open import open_backend
from runtime.backends.ort import OrtBackend
from runtime.detector import Detector
from runtime.errors import ModelError
from runtime.ops.preprocess import fit
from runtime.spec import ModelSpec
from runtime.viz.fusion_view import look, over_image
from tests.support.pairs import zip_equal

# image width and height, input height and width, resize mode
PLACES = [
    (128, 64, (64, 64), "letterbox"),  # bars above and below
    (50, 90, (96, 64), "letterbox"),  # bars left and right
    (33, 100, (64, 128), "letterbox"),  # a border that ends inside a cell
    (128, 64, (64, 64), "stretch"),
    (31, 77, (96, 160), "stretch"),
]


def white(width: int = 128, height: int = 64) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


@pytest.mark.parametrize(("width", "height", "size", "resize"), PLACES)
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_a_map_over_the_image_is_the_cell_under_each_pixel(
    width: int, height: int, size: tuple[int, int], resize: str, stride: int
) -> None:
    geometry = fit(width, height, size, resize)
    cells = np.random.default_rng(0).random((size[0] // stride, size[1] // stride)).astype(np.float32)
    seen = over_image(cells, geometry, size)
    assert seen.shape == (geometry.resized_height, geometry.resized_width)
    for y in range(seen.shape[0]):
        for x in range(seen.shape[1]):
            assert seen[y, x] == cells[(y + geometry.pad_y) // stride, (x + geometry.pad_x) // stride]


def test_names_and_shapes_of_the_further_outputs() -> None:
    assert list(inspection_shapes((64, 96)).items()) == [
        ("w5", (3, 2, 3)),
        ("w4", (3, 4, 6)),
        ("w3", (3, 8, 12)),
        ("f5", (1, 2, 3)),
        ("f4", (1, 4, 6)),
        ("f3", (1, 8, 12)),
    ]


@pytest.mark.parametrize("outputs", [3, 5])  # a detector may have more output levels than it fuses
def test_a_files_outputs_are_told_apart(outputs: int) -> None:
    arrays = [np.full((1, 1, 1, 1), i, np.float32) for i in range(outputs + 6)]
    found = Inspection.from_arrays(arrays)
    assert [len(part) for part in (found.outputs, found.weights, found.activations)] == [outputs, 3, 3]
    assert [a.item() for a in (*found.outputs, *found.fusion())] == list(range(outputs + 6))


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_a_file_is_inspected(
    batch: int | None,
    write_onnx: Callable[..., Path],
    make_spec: Callable[..., ModelSpec],
    known_fusion: Callable[[ModelSpec], dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    spec = make_spec(input_size=(64, 96))
    with open_backend(write_onnx(tmp_path / "m.onnx", spec, batch, inspect=True)) as backend:
        assert isinstance(backend, InspectableBackend)
        images = np.random.default_rng(0).random((batch or 3, 3, 64, 96)).astype(np.float32)
        found = backend.inspect(images)
        for a, b in zip_equal(found.outputs, backend.infer(images)):
            np.testing.assert_array_equal(a, b)
        wanted = list(known_fusion(spec).values())
        for a, b in zip_equal([*found.weights, *found.activations], wanted):
            np.testing.assert_allclose(a, np.repeat(b[None], len(images), axis=0), atol=1e-6)
        view = look(Detector(backend), backend, white(96, 64))
        assert view.levels.tolist() == [1]
        assert [level.shape for level in view.weights] == [(3, 64, 96)] * 3
        assert [level.shape for level in view.activations] == [(64, 96)] * 3


def test_a_view_has_the_detections_of_the_detector_and_its_levels(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    with OrtBackend(write_onnx(tmp_path / "m.onnx", inspect=True)) as backend:
        detector = Detector(backend, score_threshold=0)
        found, view = detector(white()), look(detector, backend, white())
        np.testing.assert_array_equal(view.found.boxes, found.boxes)
        np.testing.assert_array_equal(view.found.scores, found.scores)
        assert len(view.levels) == len(found) and set(view.levels.tolist()) == {0, 1, 2}
        # letterbox: the image is 64 x 32 in the middle, so the hot cell's row 1 begins at 32 - 16, 16 - 16 or not at all
        hot = [np.argwhere(level[2] > 0.9) for level in view.weights]
        assert hot[0].min(axis=0).tolist() == [16, 0] and hot[0].max(axis=0).tolist() == [31, 31]
        assert hot[1].min(axis=0).tolist() == [0, 0] and hot[1].max(axis=0).tolist() == [15, 15]
        assert not len(hot[2])


def test_a_file_without_the_outputs_names_the_remedy(tiny_onnx: Path) -> None:
    with OrtBackend(tiny_onnx) as backend, pytest.raises(ModelError, match=r"w5, w4, w3, f5, f4, f3 .* --inspect"):
        backend.inspect(np.zeros((1, 3, 64, 64), np.float32))


def test_a_closed_model_says_so(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    backend = OrtBackend(write_onnx(tmp_path / "m.onnx", inspect=True))
    backend.close()
    with pytest.raises(ModelError, match="was closed"):
        backend.inspect(np.zeros((1, 3, 64, 64), np.float32))
