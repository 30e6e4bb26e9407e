"""Emulated consumers prepare images as those programs do, written out here, and what that costs is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from export import verify
from export.accuracy.consumers import CONSUMERS, common_std
from runtime.ops.preprocess import preprocess
from runtime.spec import ModelSpec
from tests.support.small_models import CLASSES, tiny
from tests.support.small_sets import Exported
from train.spec import model_spec

Pixels = NDArray[np.float32]


def nvinfer(image: NDArray[np.uint8], spec: ModelSpec) -> Pixels:
    """Keeps the aspect ratio, pads with black on both sides, subtracts offsets, multiplies by one factor."""
    height, width = spec.input_size
    scale = min(height / image.shape[0], width / image.shape[1])
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = cv2.resize(image, size)
    factor = np.mean([1 / (255 * deviation) for deviation in spec.std])
    pixels = (canvas[..., ::-1] - 255 * np.array(spec.mean)) * factor
    return pixels.transpose(2, 0, 1).astype(np.float32)


def blob(image: NDArray[np.uint8], spec: ModelSpec) -> Pixels:
    height, width = spec.input_size
    mean = [255 * value for value in spec.mean]
    found = cv2.dnn.blobFromImage(image, 1 / (255 * common_std(spec)), (width, height), mean, swapRB=True)
    return np.asarray(found[0], np.float32)


def own(image: NDArray[np.uint8], spec: ModelSpec) -> Pixels:
    return preprocess(image, spec)[0]


@pytest.mark.parametrize(("consumer", "prepare"), [("deepstream", nvinfer), ("opencv", blob), ("triton", own)])
@pytest.mark.parametrize("size", [(80, 120), (50, 90), (64, 64)])
def test_an_image_is_prepared_as_the_consumer_does(
    size: tuple[int, int], consumer: str, prepare: Callable[[NDArray[np.uint8], ModelSpec], Pixels]
) -> None:
    spec = model_spec(tiny(), CLASSES)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    np.testing.assert_allclose(preprocess(image, CONSUMERS[consumer](spec))[0], prepare(image, spec), atol=2e-2)


def test_the_loss_is_measured_beside_the_verdict(exported: Exported, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--weights", exported.weights, "--data", exported.data, "--split", "val2017", "--output", tmp_path, exported.model]
    chosen = ["--consumer", "triton", "--consumer", "opencv", "--consumer", "deepstream"]
    assert verify.main([*map(str, given), *chosen]) == 0, "the verdict is on the file, not on the consumer"
    lines = capsys.readouterr().out.splitlines()
    points = {line.split(",")[1].split()[0]: float(line.split()[8]) for line in lines if line.startswith("best.onnx, ")}
    assert points["triton"] == pytest.approx(0, abs=0.05)
    assert points["opencv"] < -1 and points["deepstream"] < -0.05
    assert sum("no part of the verdict" in line for line in lines) == 3
