"""The whole detector: decoding against scalar loops and the deployed decode, input sizes, and gradients in every variant."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.ops.decode import decode
from runtime.spec import ModelSpec
from train.config import DARKNET_ANCHORS, ModelConfig
from train.losses.yolo_loss import COMPONENTS
from train.model import YOLOv3, build_model, decode_maps

CLASSES = 3
FUSIONS = ("none", "sum", "concat", "asff")


ANCHORS = tuple((w / 4, h / 4) for w, h in DARKNET_ANCHORS)  # for inputs of about 100 pixels


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On layers this small threads only wait for each other, for minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(backbone: str = "darknet53", fusion: str = "asff", guided: bool = True) -> YOLOv3:
    torch.manual_seed(1)
    config = ModelConfig(
        backbone=backbone,
        fusion=fusion,
        guided=guided,
        adaption=backbone == "darknet53",
        width=0.125,
        depth=0.25,
        compress=4,
        anchors=ANCHORS,
    )
    return build_model(config, CLASSES)


def outspoken(model: YOLOv3) -> YOLOv3:
    """Predictions far from those of a fresh model, for decoding."""
    for head in model.heads:
        torch.nn.init.normal_(head.predict.weight, std=0.2)
        torch.nn.init.normal_(head.predict.bias)
        if head.guide is not None:
            torch.nn.init.normal_(head.guide.bias, std=0.5)
    return model.eval()


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(4))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("anchors", [3, 4])
def test_decoding_equals_scalar_loops(anchors: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = tuple(tuple((level * 10.0 + a + 3, 50.0 - a * 7) for a in range(anchors)) for level in range(3))
    strides, sizes = (32, 16, 8), ((1, 2), (2, 4), (4, 8))
    depth = 5 + CLASSES
    maps = [torch.randn(2, anchors * depth, *size, generator=generator) for size in sizes]
    decoded = decode_maps(maps, sides, strides)
    anchor_index = 0
    for level, (height, width) in enumerate(sizes):
        for a in range(anchors):
            for row in range(height):
                for column in range(width):
                    for image in range(2):
                        t = maps[level][image, a * depth : (a + 1) * depth, row, column].tolist()
                        x = (logistic(t[0]) + column) * strides[level]
                        y = (logistic(t[1]) + row) * strides[level]
                        w, h = (sides[level][a][axis] * math.exp(t[2 + axis]) for axis in range(2))
                        want = [x, y, w, h, *(logistic(value) for value in t[4:])]
                        assert decoded[image, anchor_index].tolist() == pytest.approx(want, rel=1e-5)
                    anchor_index += 1
    assert decoded.shape == (2, anchor_index, depth)


@pytest.mark.parametrize(("backbone", "guided"), [("darknet53", True), ("darknet53", False), ("mobilenetv2", True)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96)])
def test_it_decodes_as_the_deployed_decode_does(backbone: str, guided: bool, height: int, width: int) -> None:
    model = outspoken(tiny(backbone, guided=guided))
    spec = ModelSpec("tiny", ("a", "b", "c"), (height, width), model.anchors.per_level, model.anchors.strides)
    with torch.no_grad():
        x = images(2, height, width)
        rows, maps = model(x), model.maps(x)
    assert [tuple(m.shape[1:]) for m in maps] == [spec.map_shape(level) for level in range(3)]
    for threshold in (0.0, 0.3):
        for image in range(2):
            found = decode([m[image].numpy() for m in maps], spec, threshold)
            mine = rows[image].double().numpy()
            best = mine[:, 4] * mine[:, 5:].max(axis=1)
            mine, best = mine[best >= threshold], best[best >= threshold]
            assert len(best) == len(found.scores) and len(best) > 10
            corners = np.concatenate([mine[:, :2] - mine[:, 2:4] / 2, mine[:, :2] + mine[:, 2:4] / 2], axis=1)
            tolerance = 1e-4 * np.concatenate([mine[:, 2:4], mine[:, 2:4]], axis=1).clip(1)
            assert (np.abs(found.boxes - corners) <= tolerance).all()
            np.testing.assert_allclose(found.scores, best, rtol=1e-4)
            np.testing.assert_array_equal(found.class_ids, mine[:, 5:].argmax(axis=1))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 160), (96, 64), (224, 32)])
def test_any_multiple_of_32_will_do(height: int, width: int) -> None:
    model = tiny().eval()
    with torch.no_grad():
        rows, maps = model(images(1, height, width)), model.maps(images(1, height, width))
    cells = [(height // s, width // s) for s in (32, 16, 8)]
    assert [tuple(m.shape) for m in maps] == [(1, 4 * (5 + CLASSES), *c) for c in cells]
    assert all(m.dtype == torch.float32 for m in maps)
    assert rows.shape == (1, 4 * sum(h * w for h, w in cells), 5 + CLASSES)
    assert torch.isfinite(rows).all()


def test_a_batch_is_its_images_one_by_one() -> None:
    model = outspoken(tiny())
    x = images(3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]), rtol=1e-4, atol=1e-4)


LABELS = torch.tensor(
    [
        [[1.0, 30, 20, 4, 8, 0.6], [2, 50, 40, 16, 12, 1], [0, 33, 33, 40, 50, 1]],  # one for each level
        [[0.0, 10, 60, 8, 15, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    ]
)
VARIANTS = [(b, f, g) for b in ("darknet53", "mobilenetv2") for f in FUSIONS for g in (True, False)]


@pytest.mark.parametrize(("backbone", "fusion", "guided"), VARIANTS)
def test_every_parameter_of_every_variant_learns(backbone: str, fusion: str, guided: bool) -> None:
    """Every parameter gets a gradient: DropBlock has no parameters, and a part that a variant lacks is not built."""
    model = tiny(backbone, fusion, guided)
    losses = model(images(2, 96, 64), LABELS)
    assert set(losses) == {*COMPONENTS, "total"}
    assert all(torch.isfinite(value) for value in losses.values())
    losses["total"].backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert idle == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_loss_falls_on_an_image_seen_again_and_again() -> None:
    model = tiny(fusion="asff")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x, history = images(2, 64, 64), []
    for _ in range(20):
        loss = model(x, LABELS)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.8 * history[0]
