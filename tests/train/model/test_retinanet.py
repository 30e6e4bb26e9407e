"""RetinaNet as a whole: its pyramid, its shared head, decoding as deployed, input sizes, and gradients in every variant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.ops.decode import decode
from tests.support.small_models import CLASSES, settled, tiny
from train.model import RetinaNet, build_model
from train.model.fpn import FPN, CoarseLevels
from train.model.fusion import LevelFusion
from train.model.retinanet import RetinaHead
from train.spec import model_spec

FUSIONS = ("none", "sum", "concat", "asff")
STRIDES = (128, 64, 32, 16, 8)
LABELS = torch.tensor(
    [
        [[1.0, 30, 20, 14, 18, 0.6], [2, 40, 40, 30, 30, 1], [0, 33, 33, 60, 60, 1]],
        [[0.0, 10, 60, 18, 15, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    ]
)


def fresh(fusion: str = "asff", backbone: str = "resnet50") -> RetinaNet:
    model = build_model(tiny(detector="retinanet", fusion=fusion, backbone=backbone).model, len(CLASSES))
    assert isinstance(model, RetinaNet)
    return model


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
@pytest.mark.parametrize("fusion", ["none", "asff"])
def test_it_decodes_as_the_deployed_decode_does(fusion: str, height: int, width: int) -> None:
    config = tiny(detector="retinanet", fusion=fusion)
    model, spec = settled(config), model_spec(config, CLASSES).replace(input_size=(height, width))
    assert (spec.head, spec.strides, spec.anchors) == ("retinanet", model.strides, model.level_anchors)
    x = images(2, height, width)
    with torch.no_grad():
        rows, maps = model(x), model.maps(x)
    assert [tuple(m.shape[1:]) for m in maps] == [spec.map_shape(level) for level in range(5)]
    assert (rows[..., 4] == 1).all()
    for threshold in (0.0, 0.3):
        for image in range(2):
            found = decode([m[image].numpy() for m in maps], spec, threshold)
            mine = rows[image].double().numpy()
            best = mine[:, 5:].max(axis=1)
            mine, best = mine[best >= threshold], best[best >= threshold]
            assert len(best) == len(found.scores) > 10
            corners = np.concatenate([mine[:, :2] - mine[:, 2:4] / 2, mine[:, :2] + mine[:, 2:4] / 2], axis=1)
            tolerance = 1e-4 * np.concatenate([mine[:, 2:4], mine[:, 2:4]], axis=1).clip(1)
            assert (np.abs(found.boxes - corners) <= tolerance).all()
            np.testing.assert_allclose(found.scores, best, rtol=1e-4)
            np.testing.assert_array_equal(found.class_ids, mine[:, 5:].argmax(axis=1))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 160), (96, 64), (128, 256)])
@pytest.mark.parametrize("fusion", ["none", "asff"])
def test_any_multiple_of_32_will_do(fusion: str, height: int, width: int) -> None:
    model = fresh(fusion).eval()
    with torch.no_grad():
        rows, maps = model(images(1, height, width)), model.maps(images(1, height, width))
    cells = [(-(-height // s), -(-width // s)) for s in STRIDES]
    assert [tuple(m.shape) for m in maps] == [(1, 9 * (4 + len(CLASSES)), *c) for c in cells]
    assert all(m.dtype == torch.float32 for m in maps)
    assert rows.shape == (1, 9 * sum(h * w for h, w in cells), 5 + len(CLASSES))
    assert torch.isfinite(rows).all()


def test_the_pyramid_written_out() -> None:
    fpn = FPN((8, 16, 24), 4)
    c3, c4, c5 = torch.randn(2, 8, 8, 12), torch.randn(2, 16, 4, 6), torch.randn(2, 24, 2, 3)
    top = fpn.lateral[0](c5)
    middle = fpn.lateral[1](c4) + doubled(top)
    bottom = fpn.lateral[2](c3) + doubled(middle)
    for found, conv, want in zip(fpn(c3, c4, c5), fpn.output, (top, middle, bottom)):
        torch.testing.assert_close(found, conv(want))


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_the_coarse_levels_come_from_c5() -> None:
    coarse, c5 = CoarseLevels(8, 4), torch.randn(2, 8, 3, 5)
    p7, p6 = coarse(c5)
    torch.testing.assert_close(p6, functional.conv2d(c5, coarse.p6.weight, coarse.p6.bias, 2, 1))
    torch.testing.assert_close(p7, functional.conv2d(p6.clamp(min=0), coarse.p7.weight, coarse.p7.bias, 2, 1))
    assert p6.shape == (2, 4, 2, 3) and p7.shape == (2, 4, 1, 2)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_head_sees_the_fused_levels_and_the_coarse_ones_as_they_are(fusion: str) -> None:
    model = settled(tiny(detector="retinanet", fusion=fusion))
    assert isinstance(model, RetinaNet)
    x = images(1, 64, 96)
    with torch.no_grad():
        features = model.pyramid(x)
        assert [f.shape[2:] for f in features] == [(2, 3), (4, 6), (8, 12)]
        fused = [fuse(features) for fuse in model.fusions()] if fusion != "none" else features
        coarse = model.coarse(model.backbone(x)[2])
        for found, level in zip(model.maps(x), (*coarse, *fused)):
            torch.testing.assert_close(found, model.head(level))
    assert [(f.level, f.kind) for f in model.fusions()] == ([] if fusion == "none" else [(i, fusion) for i in range(3)])
    assert all(isinstance(f, LevelFusion) for f in model.fusion)


def test_the_heads_channels_are_anchor_major() -> None:
    head = fresh().head
    x = torch.randn(2, 32, 3, 4)
    out = head(x).reshape(2, 9, 4 + len(CLASSES), 3, 4)
    torch.testing.assert_close(out[:, :, :4].flatten(1, 2), head.boxes(x))
    torch.testing.assert_close(out[:, :, 4:].flatten(1, 2), head.classes(x))


def test_a_fresh_model_says_one_in_a_hundred() -> None:
    model = fresh().eval()
    with torch.no_grad():
        rows = model(images(1, 64, 64))
    assert float(rows[..., 5:].median()) == pytest.approx(0.01, rel=0.1) and float(rows[..., 5:].max()) < 0.05


def test_how_the_head_starts() -> None:
    """At full width as in the paper, normal with 0.01; narrow towers in a way that keeps the signal's size."""
    spreads = [float(conv.weight.detach().std()) for conv in RetinaHead(256, 2, 9).modules() if isinstance(conv, nn.Conv2d)]
    assert len(spreads) == 10 and spreads == pytest.approx([0.01] * 10, rel=0.03)
    head, x = fresh().head, torch.randn(2, 32, 8, 8)
    for tower in (head.classes, head.boxes):
        assert 0.3 < float(tower[:-1](x).detach().std() / x.std()) < 2
        assert float(tower[-1].weight.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_a_batch_is_its_images_one_by_one() -> None:
    model = settled(tiny(detector="retinanet"))
    x = images(3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("backbone", "fusion"), [("resnet50", fusion) for fusion in FUSIONS] + [("resnet101", "asff")])
def test_every_parameter_of_every_variant_learns(backbone: str, fusion: str) -> None:
    model = fresh(fusion, backbone)
    losses = model(images(2, 96, 64), LABELS)
    assert set(losses) == {"classes", "boxes", "total"}
    assert all(torch.isfinite(value) for value in losses.values())
    losses["total"].backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert idle == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_loss_falls_on_images_seen_again_and_again() -> None:
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    x, history = images(2, 64, 64), []
    for _ in range(20):
        loss = model(x, LABELS)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.5 * history[0]
