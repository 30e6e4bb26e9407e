"""Augments one labeled image: pure functions over arrays, every random number from the generator passed in.

Zoom-out, crop, flip, turn, affine and the resize to the network's input are composed into one matrix and cost one
`cv2.warpAffine`; the photometric jitter works in uint8 by look-up tables, on no more pixels than are still visible.
Coordinates are continuous pixel edges, as in `runtime.ops.preprocess`: an image of width w covers [0, w].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.ops import boxes as box_ops
from runtime.ops import preprocess
from runtime.ops.image import Image
from runtime.spec import ModelSpec
from train.data.photometric import Tables, draw_tables, jitter

Matrix = NDArray[np.float64]

# SSD's choices for the least IoU between the crop and an object; None keeps the whole image, 0 does not constrain.
_CROP_CHOICES = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
_CROP_TRIES = 50
_CROP_SCALE = (0.3, 1.0)
_CROP_ASPECT = 2.0

_QUARTER = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float64)
"""Turns clockwise about the upper left corner."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations of a training image and their probabilities, in [0, 1] (training recipe).

    Attributes:
        photometric: probability of each of the four jitters below, drawn independently.
        brightness: largest shift of the pixel values, in gray levels of 255.
        contrast: (least, most) factor on the pixel values.
        saturation: (least, most) factor on the saturation.
        hue: largest shift of the hue, of 180.
        zoom_out: probability of placing the image on a larger canvas of the mean color.
        max_zoom: largest side of that canvas, in sides of the image.
        crop: probability of the IoU-constrained random crop; one of its choices is to keep the whole image.
        flip: probability of the horizontal flip.
        turn: probability of a turn by one, two or three quarters, for images that have no up and down.
        affine: probability of the random affine map.
        rotate: its largest rotation, in degrees.
        shift: its largest shift, in sides of the image.
        scale: its (least, most) scale.
        shear: its largest shear, in degrees.
        min_side: boxes with a side below this many input pixels after everything are dropped.
    """

    photometric: float = 0.5
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    zoom_out: float = 0.5
    max_zoom: float = 4.0
    crop: float = 1.0
    flip: float = 0.5
    turn: float = 0.0
    affine: float = 0.5
    rotate: float = 10.0
    shift: float = 0.1
    scale: tuple[float, float] = (0.9, 1.1)
    shear: float = 2.0
    min_side: float = 6.0

    def __post_init__(self) -> None:
        """Raises InputError naming the first field that is out of its range."""
        for name in ("photometric", "zoom_out", "crop", "flip", "turn", "affine"):
            _require(0 <= getattr(self, name) <= 1, name, "a probability in 0-1", getattr(self, name))
        for name in ("contrast", "saturation", "scale"):
            least, most = getattr(self, name)
            _require(0 < least <= most < math.inf, name, "(least, most) with 0 < least <= most", (least, most))
        limits = {"brightness": 255.0, "hue": 90.0, "rotate": 180.0, "shift": 1.0, "shear": 45.0, "min_side": 1e4}
        for name, most in limits.items():
            _require(0 <= getattr(self, name) <= most, name, f"in 0-{most:g}", getattr(self, name))
        _require(1 <= self.max_zoom <= 16, "max_zoom", "in 1-16", self.max_zoom)

    @classmethod
    def none(cls) -> AugmentConfig:
        """Turns everything off, the size limit on boxes included: the image is resized as for inference."""
        return cls(photometric=0.0, zoom_out=0.0, crop=0.0, flip=0.0, affine=0.0, min_side=0.0)


def _require(passed: bool, name: str, expected: str, value: object) -> None:
    if not passed:
        raise InputError(f"augmentation: {name} is {value!r}, expected {expected}")


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its objects.

    Attributes:
        image: uint8 BGR `[H, W, 3]`.
        boxes: float32 `[N, 4]` xyxy in pixels of `image`.
        class_ids: int64 `[N]`.
        weights: float32 `[N]` in [0, 1], the share of the object's image in a mixture; 1 without mixup.
    """

    image: Image
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class InputFrame:
    """Size and border colors of the network's input.

    Attributes:
        size: (height, width) in pixels.
        resize: `letterbox` or `stretch`, see `runtime.ops.preprocess.fit`.
        pad_value: gray level of the letterbox border, 0-255.
        fill: (blue, green, red), 0-255, of what lies outside the image: the mean color of the training set.
    """

    size: tuple[int, int]
    resize: str
    pad_value: float
    fill: tuple[int, int, int]

    @classmethod
    def of(cls, spec: ModelSpec, size: tuple[int, int] | None = None) -> InputFrame:
        """Returns the frame of a model, at (height, width) `size` if given, else at its own input size."""
        blue, green, red = spec.mean[::-1] if spec.color == "rgb" else spec.mean
        # A spec normalized by plain x / 255 has mean 0: black would be a strange surrounding, its gray is the better one.
        gray = spec.pad_value / 255
        mean = (blue, green, red) if any(spec.mean) else (gray, gray, gray)
        fill = tuple(min(max(round(255 * value), 0), 255) for value in mean)
        return cls(size or spec.input_size, spec.resize, spec.pad_value, (fill[0], fill[1], fill[2]))


def augment(sample: Sample, frame: InputFrame, rng: np.random.Generator, config: AugmentConfig) -> Sample:
    """Augments a sample to the network's input (training recipe).

    Args:
        sample: in original pixels.
        frame: of the network's input.
        rng: source of every random number.
        config: probabilities and ranges.

    Returns:
        The image uint8 BGR `[*frame.size, 3]` and the boxes in its pixels, kept where their center is still visible
        (as in SSD), clipped to what is visible, and with both sides positive and at least `config.min_side`.
    """
    height, width = sample.image.shape[:2]
    tables = draw_tables(config.photometric, config.brightness, config.contrast, config.saturation, config.hue, rng)
    placed, view = _draw_view(width, height, sample.boxes, config, rng)
    geometry = preprocess.fit(*view, frame.size, frame.resize)
    if view == (width, height) and np.array_equal(placed, np.eye(3)):
        image = preprocess.resize(jitter(sample.image, tables), geometry, frame.size, frame.pad_value)
    else:
        image = _warp(sample.image, _scaling(*geometry.scale) @ placed, geometry, frame, tables)

    enclosing = transform_boxes(sample.boxes, placed)
    x, y = ((enclosing[:, :2] + enclosing[:, 2:]) / 2).T
    visible = (x >= 0) & (x <= view[0]) & (y >= 0) & (y <= view[1])
    boxes = geometry.to_input(box_ops.clip(enclosing, *view).astype(np.float32))
    boxes = box_ops.clip(boxes, frame.size[1], frame.size[0])  # float32 may round to just outside
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = visible & (sides > 0).all(axis=1) & (sides >= config.min_side).all(axis=1)
    return Sample(image, boxes[keep], sample.class_ids[keep], sample.weights[keep])


def transform_boxes(boxes: NDArray[np.float32], matrix: Matrix) -> Matrix:
    """Maps boxes `[N, 4]` xyxy by a matrix `[3, 3]`; returns the upright boxes around their corners, float64 `[N, 4]`."""
    corners = boxes.astype(np.float64)[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    mapped = corners @ matrix[:2, :2].T + matrix[:2, 2]
    return np.concatenate([mapped.min(axis=1), mapped.max(axis=1)], axis=1)


def _draw_view(
    width: int, height: int, boxes: NDArray[np.float32], config: AugmentConfig, rng: np.random.Generator
) -> tuple[Matrix, tuple[int, int]]:
    """Draws zoom-out, crop, flip, turn and affine; returns the matrix from image to view and the view's (width, height)."""
    matrix, view = np.eye(3), (width, height)
    if rng.random() < config.zoom_out:
        ratio = rng.uniform(1.0, config.max_zoom)
        view = (round(width * ratio), round(height * ratio))
        matrix = _shift(int(rng.integers(view[0] - width + 1)), int(rng.integers(view[1] - height + 1)))
    if rng.random() < config.crop:
        x1, y1, x2, y2 = _draw_crop(view, transform_boxes(boxes, matrix), rng)
        matrix, view = _shift(-x1, -y1) @ matrix, (x2 - x1, y2 - y1)
    if rng.random() < config.flip:
        matrix = _shift(view[0], 0) @ _scaling(-1, 1) @ matrix
    if config.turn and rng.random() < config.turn:  # where it is off nothing is drawn: other samples stay as they were
        for _ in range(int(rng.integers(1, 4))):
            matrix, view = _shift(view[1], 0) @ _QUARTER @ matrix, view[::-1]
    if rng.random() < config.affine:
        matrix = _draw_affine(view, config, rng) @ matrix
    return matrix, view


def _draw_crop(view: tuple[int, int], boxes: Matrix, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws an IoU-constrained crop (SSD, training recipe): (x1, y1, x2, y2) in whole pixels, the whole view where none fits.

    A crop is accepted when it overlaps at least one object by the least IoU drawn and keeps the center of at least one.
    `boxes` is `[N, 4]` xyxy in the view.
    """
    width, height = view
    whole = (0, 0, width, height)
    least = _CROP_CHOICES[rng.integers(len(_CROP_CHOICES))]
    if least is None:
        return whole
    scale = rng.uniform(*_CROP_SCALE, _CROP_TRIES)
    aspect = rng.uniform(np.maximum(1 / _CROP_ASPECT, scale**2), np.minimum(_CROP_ASPECT, 1 / scale**2))
    sides = np.stack([width * scale * np.sqrt(aspect), height * scale / np.sqrt(aspect)], axis=1)
    sides = np.clip(np.rint(sides), 1, [width, height])
    corner = np.floor(rng.random((_CROP_TRIES, 2)) * ([width, height] - sides + 1))
    crops = np.concatenate([corner, corner + sides], axis=1)
    accepted = np.ones(_CROP_TRIES, bool)
    if len(boxes):
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = np.all((centers >= crops[:, None, :2]) & (centers <= crops[:, None, 2:]), axis=2)
        accepted = np.any(inside, axis=1) & (box_ops.iou(crops, boxes).max(axis=1) >= least)
    if not accepted.any():
        return whole
    x1, y1, x2, y2 = crops[int(accepted.argmax())].astype(int).tolist()
    return x1, y1, x2, y2


def _draw_affine(view: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Matrix:
    """Draws a rotation, shear and scale about the center of the view, then a shift (training recipe); `[3, 3]`."""
    angle = math.radians(rng.uniform(-config.rotate, config.rotate))
    shear_x, shear_y = np.tan(np.radians(rng.uniform(-config.shear, config.shear, 2)))
    scale = rng.uniform(*config.scale)
    shift_x, shift_y = rng.uniform(-config.shift, config.shift, 2) * view
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    rotation: Matrix = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    shear: Matrix = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    x, y = view[0] / 2, view[1] / 2
    return _shift(x + shift_x, y + shift_y) @ rotation @ shear @ _shift(-x, -y)


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _scaling(x: float, y: float) -> Matrix:
    return np.array([[x, 0, 0], [0, y, 0], [0, 0, 1]], np.float64)


def _warp(
    image: Image,
    matrix: Matrix,
    geometry: preprocess.Geometry,
    frame: InputFrame,
    tables: Tables,
) -> Image:
    """Jitters the visible part of `image` and maps it by `matrix` `[3, 3]` into the rectangle of `geometry`.

    Returns:
        uint8 `[*frame.size, 3]`.
    """
    size = (geometry.resized_width, geometry.resized_height)
    left, top, right, bottom = _visible_part(image, matrix, size)
    if right > left and bottom > top:
        part, shrunk = _shrink(image[top:bottom, left:right], np.linalg.norm(matrix[:2, :2], axis=0))
        # OpenCV counts from pixel centers, hence the shifts by half a pixel on both sides.
        centers = _shift(-0.5, -0.5) @ matrix @ _shift(left, top) @ shrunk @ _shift(0.5, 0.5)
        placed = cv2.warpAffine(jitter(part, tables), centers[:2], size, borderValue=frame.fill)
    else:
        placed = np.full((size[1], size[0], 3), frame.fill, np.uint8)
    below, beside = frame.size[0] - size[1] - geometry.pad_y, frame.size[1] - size[0] - geometry.pad_x
    gray = (round(frame.pad_value),) * 3
    bordered = cv2.copyMakeBorder(placed, geometry.pad_y, below, geometry.pad_x, beside, cv2.BORDER_CONSTANT, value=gray)
    return np.asarray(bordered, np.uint8)


def _visible_part(image: Image, matrix: Matrix, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of the pixels that `matrix` maps into (width, height) `size`; may be empty."""
    target = np.array([[0, 0, *size]], np.float32)
    inverse = np.linalg.inv(matrix).astype(np.float64)
    x1, y1, x2, y2 = transform_boxes(target, inverse)[0]
    margin_x, margin_y = np.abs(inverse[:2, :2]).sum(axis=1) + 1  # what interpolation reaches beyond the edge
    height, width = image.shape[:2]
    left, right = np.clip([math.floor(x1 - margin_x), math.ceil(x2 + margin_x)], 0, width).tolist()
    top, bottom = np.clip([math.floor(y1 - margin_y), math.ceil(y2 + margin_y)], 0, height).tolist()
    return left, top, right, bottom


def _shrink(image: Image, scale: NDArray[np.float64]) -> tuple[Image, Matrix]:
    """Averages pixels where (x, y) `scale` halves the image or more, since bilinear sampling would skip some of them.

    Returns:
        The image, and the map from its frame back to that of `image`.
    """
    height, width = image.shape[:2]
    by_x, by_y = (max(math.floor(1 / value), 1) for value in scale)
    if by_x == by_y == 1:
        return image, np.eye(3)
    small_width, small_height = max(round(width / by_x), 1), max(round(height / by_y), 1)
    small = np.asarray(cv2.resize(image, (small_width, small_height), interpolation=cv2.INTER_AREA), np.uint8)
    return small, _scaling(width / small_width, height / small_height)
