"""Placement of images in the input, boxes mapped back, normalized values."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.ops.preprocess import fit, normalize, preprocess, resize
from runtime.spec import ModelSpec

SIDE = st.integers(1, 2000)
INPUT = st.tuples(st.integers(1, 25), st.integers(1, 25)).map(lambda hw: (hw[0] * 32, hw[1] * 32))
SMALL = st.sampled_from(range(32, 321, 32))
MODE = st.sampled_from(["letterbox", "stretch"])


@settings(max_examples=200)
@given(SIDE, SIDE, INPUT, MODE, st.data())
def test_boxes_come_back(width: int, height: int, size: tuple[int, int], mode: str, data: st.DataObject) -> None:
    geometry = fit(width, height, size, mode)
    unit = st.floats(0, 1, width=32)
    corners = np.array(data.draw(st.lists(st.tuples(unit, unit, unit, unit), min_size=1, max_size=4)), np.float32)
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    boxes = boxes * np.array([width, height] * 2, np.float32)
    placed = geometry.to_input(boxes)
    assert placed.dtype == np.float32
    assert (placed >= 0).all() and (placed <= np.array([size[1], size[0]] * 2) * (1 + 1e-6)).all()
    back = geometry.to_original(placed)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, boxes, atol=1e-2, rtol=0)


@settings(max_examples=300)
@given(SIDE, SIDE, INPUT)
def test_letterbox_is_centerd_and_keeps_the_aspect_ratio(width: int, height: int, size: tuple[int, int]) -> None:
    geometry = fit(width, height, size, "letterbox")
    right = size[1] - geometry.pad_x - geometry.resized_width
    below = size[0] - geometry.pad_y - geometry.resized_height
    assert right - geometry.pad_x in (0, 1) and below - geometry.pad_y in (0, 1)
    assert geometry.resized_width == size[1] or geometry.resized_height == size[0]
    scale = min(size[1] / width, size[0] / height)
    assert abs(geometry.resized_width - max(width * scale, 1)) <= 0.5 + 1e-9
    assert abs(geometry.resized_height - max(height * scale, 1)) <= 0.5 + 1e-9


@given(SIDE, SIDE, INPUT)
def test_stretch_fills_the_input(width: int, height: int, size: tuple[int, int]) -> None:
    geometry = fit(width, height, size, "stretch")
    assert (geometry.resized_height, geometry.resized_width) == size
    assert (geometry.pad_x, geometry.pad_y) == (0, 0)


def test_boxes_out_of_the_image_are_clipped() -> None:
    geometry = fit(100, 50, (64, 64), "letterbox")
    assert geometry.to_original(np.array([[-9, -9, 99, 99]], np.float32)).tolist() == [[0, 0, 100, 50]]


@settings(max_examples=80)
@given(st.integers(8, 300), st.integers(8, 300), st.tuples(SMALL, SMALL), MODE, st.data())
def test_pixels_lie_where_the_geometry_says(
    width: int, height: int, size: tuple[int, int], mode: str, data: st.DataObject
) -> None:
    x1, y1 = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    x2, y2 = data.draw(st.integers(x1 + 2, width)), data.draw(st.integers(y1 + 2, height))
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    geometry = fit(width, height, size, mode)
    placed = resize(image, geometry, size, 114)
    assert placed.shape == (*size, 3) and placed.dtype == np.uint8

    left, top, right, bottom = geometry.to_input(np.array([[x1, y1, x2, y2]], np.float32))[0]
    columns, rows = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    # bilinear weights reach one source pixel, or one target pixel where the image shrinks
    blur_x, blur_y = (max(scale, 1) for scale in geometry.scale)
    distance = np.maximum(np.maximum(left - columns, columns - right) / blur_x, np.maximum(top - rows, rows - bottom) / blur_y)
    covered = (
        (columns > geometry.pad_x)
        & (columns < geometry.pad_x + geometry.resized_width)
        & (rows > geometry.pad_y)
        & (rows < geometry.pad_y + geometry.resized_height)
    )
    assert (placed[distance < -1] == 255).all()
    assert (placed[covered & (distance > 1)] == 0).all()
    assert (placed[~covered] == 114).all()


def test_an_edge_is_at_the_same_place_to_half_a_pixel() -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, 45:] = 255  # the middle
    placed = resize(image, fit(90, 60, (256, 256), "letterbox"), (256, 256), 114)
    row = placed[128, :, 0].astype(int)
    np.testing.assert_array_equal(row + row[::-1], 255)  # bilinear interpolation with half-pixel centers is symmetric


@pytest.mark.parametrize("pad_value", [0, 114, 255])
def test_border_has_the_pad_value(pad_value: int, make_spec: Callable[..., ModelSpec]) -> None:
    tensor, geometry = preprocess(np.full((10, 40, 3), 7, np.uint8), make_spec(pad_value=pad_value))
    assert (geometry.pad_x, geometry.pad_y, geometry.resized_height) == (0, 24, 16)
    np.testing.assert_array_equal(tensor[:, :24], np.float32(pad_value / 255))
    np.testing.assert_array_equal(tensor[:, 40:], np.float32(pad_value / 255))
    np.testing.assert_array_equal(tensor[:, 24:40], np.float32(7 / 255))


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize(("mean", "std"), [((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_normalize_is_the_formula(
    color: str, mean: tuple[float, ...], std: tuple[float, ...], make_spec: Callable[..., ModelSpec]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    found = normalize(image, make_spec(color=color, mean=mean, std=std))
    ordered = image[..., ::-1] if color == "rgb" else image
    exact = ((ordered / 255.0 - mean) / std).transpose(2, 0, 1)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, exact, rtol=0, atol=2.5e-7)  # values are up to 2.6, where float32 steps by 2.4e-7
    offset, scale = (np.float32([255 * value for value in values]).reshape(3, 1, 1) for values in (mean, std))
    in_float32 = (ordered.transpose(2, 0, 1).astype(np.float32) - offset) / scale
    np.testing.assert_array_equal(found, in_float32)  # bit by bit what a graph computes


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_a_model_that_takes_bytes_gets_the_pixels(color: str, make_spec: Callable[..., ModelSpec]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    spec = make_spec(color=color, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    planes, geometry = preprocess(image, spec)
    pixels, same = preprocess(image, spec.replace(input_type="uint8"))
    assert pixels.dtype == np.uint8 and pixels.shape == (64, 64, 3) and same == geometry
    exact = (pixels.transpose(2, 0, 1) / 255 - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    np.testing.assert_allclose(planes, exact, rtol=0, atol=2.5e-7)


@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (1, 5000), (5000, 1), (64, 32), (32, 64), (64, 96)])
def test_any_image_fits(shape: tuple[int, int], mode: str, make_spec: Callable[..., ModelSpec]) -> None:
    tensor, geometry = preprocess(np.full((*shape, 3), 200, np.uint8), make_spec(input_size=(64, 96), resize=mode))
    assert tensor.shape == (3, 64, 96) and tensor.dtype == np.float32
    assert geometry.resized_width >= 1 and geometry.resized_height >= 1
    y, x = geometry.pad_y, geometry.pad_x
    inner = tensor[:, y : y + geometry.resized_height, x : x + geometry.resized_width]
    np.testing.assert_array_equal(inner, np.float32(200 / 255))
    whole = np.array([[0, 0, shape[1], shape[0]]], np.float32)
    np.testing.assert_allclose(geometry.to_original(geometry.to_input(whole)), whole, rtol=1e-5)


def test_an_image_of_the_right_size_is_not_resampled(make_spec: Callable[..., ModelSpec]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for mode in ("letterbox", "stretch"):
        tensor, _ = preprocess(image[:, ::-1], make_spec(resize=mode, color="bgr"))  # a view with a negative stride
        np.testing.assert_array_equal(np.rint(tensor * 255), image[:, ::-1].transpose(2, 0, 1))


def test_resize_is_bilinear() -> None:
    image = np.random.default_rng(2).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    placed = resize(image, fit(50, 30, (96, 64), "stretch"), (96, 64), 114)
    np.testing.assert_array_equal(placed, cv2.resize(image, (64, 96), interpolation=cv2.INTER_LINEAR))
