"""Augmentation: boxes follow their pixels; switched off it is the resize of inference; switches do what they say."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.ops import preprocess
from runtime.spec import ModelSpec
from train.data.augment import AugmentConfig, InputFrame, Sample, _draw_view, augment, transform_boxes
from train.data.photometric import draw_tables

OFF = AugmentConfig.none()
FRAME = InputFrame((160, 192), "letterbox", 114.0, (104, 116, 124))
SIZES = st.tuples(st.integers(24, 300), st.integers(24, 300))


def sample_with(image: np.ndarray, boxes: list[list[float]]) -> Sample:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(image, array, np.arange(len(array)), np.ones(len(array), np.float32))


def white_rectangle(width: int, height: int, box: tuple[int, int, int, int]) -> Sample:
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return sample_with(image, [list(box)])


def bright_extent(image: np.ndarray) -> list[int]:
    bright = image.min(axis=2) > 127
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@given(SIZES, st.sampled_from(["letterbox", "stretch"]), st.sampled_from([(160, 192), (64, 64)]))
@settings(max_examples=30)
def test_switched_off_it_is_the_preprocessing_of_inference(size: tuple[int, int], resize: str, target: tuple[int, int]) -> None:
    height, width = size
    rng = np.random.default_rng(height * 1000 + width)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes = [[1, 2, width / 2, height / 2], [0, 0, width, height]]
    frame = dataclasses.replace(FRAME, size=target, resize=resize)
    result = augment(sample_with(image, boxes), frame, rng, OFF)
    geometry = preprocess.fit(width, height, target, resize)
    np.testing.assert_array_equal(result.image, preprocess.resize(image, geometry, target, frame.pad_value))
    np.testing.assert_allclose(result.boxes, geometry.to_input(np.array(boxes, np.float32)), rtol=1e-6)


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize(
    "changes",
    [
        {"zoom_out": 1.0},
        {"crop": 1.0},
        {"flip": 1.0},
        {"turn": 1.0},
        {"affine": 1.0, "rotate": 0.0, "shear": 0.0},
        {"zoom_out": 0.5, "crop": 0.5, "flip": 0.5, "turn": 1.0},
        {"zoom_out": 1.0, "crop": 1.0, "flip": 1.0, "affine": 1.0, "rotate": 0.0, "shear": 0.0},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_boxes_enclose_the_warped_pixels(changes: dict[str, float], resize: str) -> None:
    config = dataclasses.replace(OFF, **changes)
    frame = dataclasses.replace(FRAME, resize=resize, pad_value=0.0, fill=(0, 0, 0))
    kept = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, y = rng.integers(5, 100, 2).tolist()
        result = augment(white_rectangle(230, 180, (x, y, x + 90, y + 70)), frame, rng, config)
        kept += len(result.boxes)
        if len(result.boxes):
            # A pixel counts as soon as half of it is covered, hence up to half a pixel, and one more of rounding.
            np.testing.assert_allclose(result.boxes[0], bright_extent(result.image), atol=1.1)
    assert kept > 40


def test_rotated_boxes_enclose_and_stay_close() -> None:
    config = dataclasses.replace(OFF, affine=1.0)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        frame = dataclasses.replace(FRAME, pad_value=0.0, fill=(0, 0, 0))
        result = augment(white_rectangle(230, 180, (80, 60, 150, 120)), frame, rng, config)
        np.testing.assert_allclose(result.boxes[0], bright_extent(result.image), atol=1.6)


def test_flip_mirrors_the_image_and_its_boxes() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (160, 192, 3), dtype=np.uint8)
    result = augment(sample_with(image, [[10, 20, 50, 70]]), FRAME, rng, dataclasses.replace(OFF, flip=1.0))
    np.testing.assert_array_equal(result.image, image[:, ::-1])
    np.testing.assert_allclose(result.boxes, [[142, 20, 182, 70]])


def test_turns_are_whole_quarters_of_the_image_and_its_boxes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    frame = dataclasses.replace(FRAME, size=(160, 160))
    seen = set()
    for seed in range(12):
        result = augment(
            sample_with(image, [[10, 20, 50, 70]]), frame, np.random.default_rng(seed), dataclasses.replace(OFF, turn=1.0)
        )
        turns = next(count for count in (1, 2, 3) if np.array_equal(np.rot90(image, -count), result.image))
        expected = {1: [90, 10, 140, 50], 2: [110, 90, 150, 140], 3: [20, 110, 70, 150]}[turns]
        np.testing.assert_allclose(result.boxes, [expected])
        seen.add(turns)
    assert seen == {1, 2, 3}


def test_zoom_out_keeps_everything_and_surrounds_it_with_the_mean_color() -> None:
    rng = np.random.default_rng(3)
    image = np.full((160, 192, 3), 255, np.uint8)
    config = dataclasses.replace(OFF, zoom_out=1.0)
    for _ in range(10):
        result = augment(sample_with(image, [[0, 0, 192, 160]]), FRAME, rng, config)
        np.testing.assert_allclose(result.boxes[0], bright_extent(result.image), atol=1.1)
        outside = np.ones((160, 192), bool)
        x1, y1, x2, y2 = np.add(np.round(result.boxes[0]), [-2, -2, 2, 2]).clip(0).astype(int)
        outside[y1:y2, x1:x2] = False
        assert (result.image[outside] == FRAME.fill).all(axis=1).mean() > 0.95  # one row may belong to the letterbox border


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    checkers = (np.indices((800, 960)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = np.repeat(checkers[..., None], 3, axis=2)
    config = dataclasses.replace(OFF, flip=1.0)
    result = augment(sample_with(image, []), FRAME, np.random.default_rng(0), config)
    assert result.image.std() < 10  # plain bilinear sampling would give 127: only black and white
    assert abs(result.image.mean() - 127.5) < 2


def test_small_boxes_go_with_their_class_and_weight() -> None:
    image = np.zeros((160, 192, 3), np.uint8)
    sample = sample_with(image, [[0, 0, 5.9, 50], [10, 10, 16, 16], [20, 20, 60, 25]])
    result = augment(sample, FRAME, np.random.default_rng(0), dataclasses.replace(OFF, min_side=6.0))
    np.testing.assert_array_equal(result.boxes, [[10, 10, 16, 16]])
    assert result.class_ids.tolist() == [1]
    assert result.weights.tolist() == [1.0]


@given(st.integers(0, 10_000), SIZES, st.integers(0, 5))
@settings(max_examples=60)
def test_full_augmentation_keeps_its_promises(seed: int, size: tuple[int, int], count: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = size
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * [width, height]
    sample = sample_with(image, corners.reshape(-1, 4).tolist())
    before = image.copy()
    result = augment(sample, FRAME, rng, AugmentConfig())
    assert result.image.shape == (160, 192, 3)
    assert result.image.dtype == np.uint8
    assert (result.boxes.dtype, result.class_ids.dtype, result.weights.dtype) == (np.float32, np.int64, np.float32)
    assert len(result.boxes) == len(result.class_ids) == len(result.weights) <= count
    assert (result.boxes >= 0).all()
    assert (result.boxes <= [192, 160, 192, 160]).all()
    assert ((result.boxes[:, 2:] - result.boxes[:, :2]) >= 6).all()
    np.testing.assert_array_equal(image, before)


def test_equal_generators_give_equal_samples() -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    first, second, other = (
        augment(sample_with(image, [[10, 10, 90, 90]]), FRAME, np.random.default_rng(seed), AugmentConfig())
        for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert not np.array_equal(first.image, other.image)


def test_jitter_changes_colors_and_no_boxes() -> None:
    image = np.full((160, 192, 3), (60, 110, 160), np.uint8)
    config = dataclasses.replace(OFF, photometric=1.0)
    seen = {
        tuple(augment(sample_with(image, [[0, 0, 192, 160]]), FRAME, np.random.default_rng(seed), config).image[0, 0].tolist())
        for seed in range(20)
    }
    assert len(seen) > 15


def test_brightness_and_contrast_are_the_formula() -> None:
    image = np.arange(160 * 192 * 3, dtype=np.uint32).reshape(160, 192, 3).astype(np.uint8)
    config = dataclasses.replace(OFF, photometric=1.0, brightness=0.0, contrast=(1.25, 1.25), saturation=(1.0, 1.0), hue=0.0)
    result = augment(sample_with(image, []), FRAME, np.random.default_rng(0), config)
    np.testing.assert_array_equal(result.image, np.rint(np.minimum(image * 1.25, 255)).astype(np.uint8))


def test_hue_moves_by_less_than_its_limit() -> None:
    image = np.full((160, 192, 3), (40, 90, 200), np.uint8)
    config = dataclasses.replace(OFF, photometric=1.0, brightness=0.0, contrast=(1, 1), saturation=(1, 1))
    hue = int(cv2.cvtColor(image[:1, :1], cv2.COLOR_BGR2HSV)[0, 0, 0])
    for seed in range(20):
        result = augment(sample_with(image, []), FRAME, np.random.default_rng(seed), config)
        moved = int(cv2.cvtColor(result.image[:1, :1], cv2.COLOR_BGR2HSV)[0, 0, 0]) - hue
        assert abs((moved + 90) % 180 - 90) <= 19


def test_a_crop_keeps_at_least_one_object() -> None:
    image = np.zeros((160, 192, 3), np.uint8)
    for seed in range(100):
        sample = sample_with(image, [[20, 20, 60, 60], [120, 90, 180, 150]])
        assert len(augment(sample, FRAME, np.random.default_rng(seed), dataclasses.replace(OFF, crop=1.0)).boxes) >= 1


def test_transform_boxes_takes_the_four_corners() -> None:
    quarter_turn = np.array([[0.0, -1, 100], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(transform_boxes(np.array([[10, 20, 30, 60]], np.float32), quarter_turn), [[40, 10, 80, 30]])
    assert transform_boxes(np.zeros((0, 4), np.float32), quarter_turn).shape == (0, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 1.5},
        {"turn": -0.5},
        {"zoom_out": -0.1},
        {"contrast": (1.5, 0.5)},
        {"scale": (0.0, 1.0)},
        {"max_zoom": 0.5},
        {"hue": float("nan")},
    ],
)
def test_config_is_checked(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        AugmentConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("color", "mean", "fill"),
    [
        ("rgb", (0.485, 0.456, 0.406), (104, 116, 124)),
        ("bgr", (0.406, 0.456, 0.485), (104, 116, 124)),
        ("rgb", (0.0, 0.0, 0.0), (114, 114, 114)),
    ],
)
def test_the_frame_is_filled_with_the_mean_color(color: str, mean: tuple[float, float, float], fill: tuple[int, ...]) -> None:
    spec = ModelSpec("m", ("a",), (64, 96), (((8.0, 8.0),),) * 3, color=color, mean=mean)
    assert InputFrame.of(spec).fill == fill
    assert InputFrame.of(spec).size == (64, 96)
    assert InputFrame.of(spec, (32, 32)).size == (32, 32)


@pytest.mark.parametrize("changes", [{"affine": 1.0}, {"affine": 1.0, "zoom_out": 0.5, "crop": 1.0, "flip": 0.5}])
def test_an_object_of_which_half_is_visible_keeps_its_label(changes: dict[str, float]) -> None:
    """The center rule loses none, and what it keeps is visible from a quarter on, unless the box is larger than the view."""
    config = dataclasses.replace(AugmentConfig(), photometric=0.0, min_side=0.0, **{"crop": 0.0, "zoom_out": 0.0, **changes})
    rng = np.random.default_rng(4)
    image = np.zeros((90, 120, 3), np.uint8)
    kept = lost = 0
    for seed in range(150):
        corners = rng.uniform([0, 0], [100, 70], (30, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(4, 20, (30, 2))], axis=1).astype(np.float32)
        sample = sample_with(image, boxes.tolist())
        found = augment(sample, FRAME, np.random.default_rng(seed), config)
        placed, view = _draw_view_after_jitter(sample, config, seed)
        whole = transform_boxes(boxes, placed)
        seen = np.clip(whole, 0, [*view, *view])
        share = (seen[:, 2:] - seen[:, :2]).prod(axis=1) / (whole[:, 2:] - whole[:, :2]).prod(axis=1)
        stays = np.isin(sample.class_ids, found.class_ids)
        assert stays[share >= 0.5 + 1e-6].all()
        fits = (whole[:, 2:] - whole[:, :2] <= view).all(axis=1)
        assert (share[stays & fits] >= 0.25 - 1e-6).all()
        kept, lost = kept + int(stays.sum()), lost + int((~stays & (share > 0.3)).sum())
    assert kept > 1000 and lost > 0


def _draw_view_after_jitter(sample: Sample, config: AugmentConfig, seed: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The view that `augment` draws from a seed, which draws the photometric jitter first."""
    rng = np.random.default_rng(seed)
    draw_tables(config.photometric, config.brightness, config.contrast, config.saturation, config.hue, rng)
    height, width = sample.image.shape[:2]
    return _draw_view(width, height, sample.boxes, config, rng)


def test_what_the_affine_map_brings_in_has_the_mean_color() -> None:
    config = dataclasses.replace(OFF, affine=1.0, rotate=0.0, shear=0.0, scale=(0.5, 0.5), shift=0.0)
    white = sample_with(np.full((160, 192, 3), 255, np.uint8), [[0, 0, 192, 160]])
    found = augment(white, FRAME, np.random.default_rng(0), config)
    assert found.image[0, 0].tolist() == found.image[-1, -1].tolist() == list(FRAME.fill)
    assert found.image[80, 96].tolist() == [255, 255, 255]
