"""Feature fusion: shapes between all levels, the formula, and which features a level's gradient reaches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.small_models import settled, tiny
from train.config import LossConfig, ModelConfig
from train.losses.head_output import HeadOutput
from train.losses.packing import Matcher, PackedTargets
from train.losses.yolo_loss import detection_loss
from train.model import YOLOv3, build_model
from train.model.blocks import LEAKY, RELU6, ConvBlock
from train.model.detector import DetectorModel
from train.model.fusion import LevelFusion, Resize

DARKNET, MOBILENET = (512, 256, 256), (512, 256, 128)
CHANNELS = (16, 8, 8)


def pyramid(channels: tuple[int, int, int], height: int, width: int, seed: int = 0) -> list[Tensor]:
    """P5, P4, P3 for a P5 of height x width, each asking for its gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, c, height << level, width << level, generator=generator).requires_grad_()
        for level, c in enumerate(channels)
    ]


def fusion(level: int, kind: str, act: str = LEAKY) -> LevelFusion:
    torch.manual_seed(level)
    return LevelFusion(CHANNELS, 24, level, kind, 4, act).eval()


def resized(module: LevelFusion, features: list[Tensor], level: int, source: int) -> Tensor:
    """A feature brought to a level, written out."""
    x = features[source]
    if source == level:
        return x
    conv = module.resize[source].conv
    if source < level:
        return functional.interpolate(conv(x), scale_factor=2 ** (level - source), mode="nearest")
    return conv(functional.max_pool2d(x, 3, 2, 1) if source - level == 2 else x)


@pytest.mark.parametrize(("target", "source"), [(t, s) for t in range(3) for s in range(3) if t != s])
@pytest.mark.parametrize("channels", [DARKNET, MOBILENET], ids=["darknet", "mobilenet"])
def test_every_level_resizes_to_every_other(channels: tuple[int, int, int], target: int, source: int) -> None:
    with torch.device("meta"):
        resize = Resize(channels[source], channels[target], target - source, LEAKY)
        for height, width in ((1, 1), (1, 3), (3, 5), (2, 4)):
            out = resize(torch.zeros(2, channels[source], height << source, width << source))
            assert out.shape == (2, channels[target], height << target, width << target)
    convs = [m for m in resize.modules() if isinstance(m, nn.Conv2d)]
    if source > target:
        assert [c.kernel_size for c in convs] == [(3, 3)] and convs[0].stride == (2, 2)
    elif channels[source] == channels[target]:
        assert not convs
    else:
        assert [c.kernel_size for c in convs] == [(1, 1)]


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("act", [LEAKY, RELU6])
def test_weights_are_shares(level: int, act: str) -> None:
    module = fusion(level, "asff", act)
    nn.init.normal_(module.weights.weigh.weight, std=3)
    nn.init.normal_(module.weights.weigh.bias)
    features = pyramid(CHANNELS, 2, 3)
    weights = module.weights([resized(module, features, level, source) for source in range(3)])
    assert weights.shape == (2, 3, 2 << level, 3 << level)
    assert (weights >= 0).all() and (weights <= 1).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 2 << level, 3 << level))
    assert weights.std() > 0.01  # they depend on the features


@pytest.mark.parametrize("level", range(3))
def test_asff_is_the_written_out_formula(level: int) -> None:
    module = fusion(level, "asff")
    nn.init.normal_(module.weights.weigh.bias)
    features = pyramid(CHANNELS, 3, 2)
    x = [resized(module, features, level, source) for source in range(3)]
    compressed = torch.cat([module.weights.compress[source](x[source]) for source in range(3)], dim=1)
    weigh = module.weights.weigh
    lambdas = [
        torch.einsum("nchw,c->nhw", compressed, weigh.weight[source, :, 0, 0]) + weigh.bias[source] for source in range(3)
    ]
    total = sum(torch.exp(value) for value in lambdas)
    want = sum(x[source] * (torch.exp(lambdas[source]) / total)[:, None] for source in range(3))
    torch.testing.assert_close(module.fuse(features), want)
    torch.testing.assert_close(module(features), module.expand(want))


@pytest.mark.parametrize("level", range(3))
def test_the_plain_fusions(level: int) -> None:
    features = pyramid(CHANNELS, 2, 2)
    for kind in ("sum", "concat"):
        module = fusion(level, kind)
        x = [resized(module, features, level, source) for source in range(3)]
        want = x[0] + x[1] + x[2] if kind == "sum" else torch.cat(x, dim=1)
        torch.testing.assert_close(module.fuse(features), want)
        assert module(features).shape == (2, 24, 2 << level, 2 << level)
    torch.testing.assert_close(fusion(level, "none").fuse(features), features[level])


@pytest.mark.parametrize("level", range(3))
def test_a_weight_of_zero_keeps_the_gradient_from_the_other_level(level: int) -> None:
    """Paper, Eq. 3-6: a feature of weight 0 gets no gradient; a sum sends one to every feature."""
    module = fusion(level, "asff")
    with torch.no_grad():
        module.weights.weigh.bias.fill_(-1e4)
        module.weights.weigh.bias[level] = 1e4
    features = pyramid(CHANNELS, 2, 3)
    module(features).square().sum().backward()
    for source in range(3):
        grad = features[source].grad
        assert grad is not None and bool((grad != 0).any()) == (source == level)

    features = pyramid(CHANNELS, 2, 3)
    fusion(level, "sum")(features).square().sum().backward()
    assert all(f.grad is not None and (f.grad != 0).any() for f in features)


def gradients_of_negatives(kind: str, level: int) -> list[float]:
    """Largest gradient that one level's background (an image without labels) sends into P5, P4 and P3, in a whole detector.

    ASFF's weights are driven to 1 for each level's own feature and 0 for the others.
    """
    torch.manual_seed(level)
    model = build_model(ModelConfig(width=0.125, depth=0.25, fusion=kind), 2)
    assert isinstance(model, YOLOv3)
    for own, module in enumerate(model.fusion):
        if kind == "asff":
            with torch.no_grad():
                module.weights.weigh.bias.fill_(-1e4)
                module.weights.weigh.bias[own] = 1e4
    features = [x.detach().requires_grad_() for x in model.pyramid(torch.randn(2, 3, 96, 64))]
    outputs = [head(fuse(features)) for fuse, head in zip(model.fusion, model.heads)]
    heard = [o if i == level else HeadOutput(*(t.detach() for t in o)) for i, o in enumerate(outputs)]  # type: ignore[union-attr]
    detection_loss(heard, torch.zeros(2, 1, 5), model.anchors, 2, LossConfig())["objectness"].backward()
    return [0.0 if x.grad is None else float(x.grad.abs().max()) for x in features]


@pytest.mark.parametrize("level", range(3))
def test_negatives_of_one_level_leave_the_features_of_the_others_alone(level: int) -> None:
    """Section 3.3: background sends no gradient into a feature of fusion weight 0; with a sum it always does."""
    adaptive = gradients_of_negatives("asff", level)
    assert [value > 0 for value in adaptive] == [source == level for source in range(3)]
    for kind in ("sum", "concat"):
        assert min(gradients_of_negatives(kind, level)) > 1e-3 * adaptive[level]


@pytest.mark.parametrize("level", range(3))
def test_the_gradient_to_a_feature_is_scaled_by_its_weight(level: int) -> None:
    """With weights that do not depend on the features, each feature gets its share of a sum's gradient."""
    logits = torch.tensor([0.3, -1.0, 1.2])
    asff, plain = fusion(level, "asff"), fusion(level, "sum")
    plain.resize.load_state_dict(asff.resize.state_dict())
    nn.init.zeros_(asff.weights.weigh.weight)
    with torch.no_grad():
        asff.weights.weigh.bias.copy_(logits)
    grads = []
    for module in (asff, plain):
        features = pyramid(CHANNELS, 3, 2)
        fused = module.fuse(features)
        fused.backward(torch.randn(fused.shape, generator=torch.Generator().manual_seed(9)))
        grads.append([f.grad for f in features])
    for source, share in enumerate(torch.softmax(logits, dim=0)):
        torch.testing.assert_close(grads[0][source], share * grads[1][source])


@pytest.mark.parametrize("kind", ["none", "sum", "concat", "asff"])
@pytest.mark.parametrize(("backbone", "channels"), [("darknet53", DARKNET), ("mobilenetv2", MOBILENET)])
def test_channels_of_the_built_models(backbone: str, channels: tuple[int, int, int], kind: str) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=backbone, fusion=kind, adaption=backbone == "darknet53"), 2)
    own = (512, 256, 128) if kind == "none" else channels
    times = 3 if kind == "concat" else 1
    for level, module in enumerate(model.fusion):
        assert isinstance(module, LevelFusion) and isinstance(module.expand, ConvBlock)
        assert module.expand.conv.weight.shape == ((1024, 512, 256)[level], times * own[level], 3, 3)
        if kind == "asff":
            assert [c.conv.weight.shape for c in module.weights.compress] == [(16, own[level], 1, 1)] * 3
            assert module.weights.weigh.weight.shape == (3, 48, 1, 1)
    convs = [m for m in model.widen.modules() if isinstance(m, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convs] == ([(256, 128, 3, 3)] if backbone == "darknet53" and kind != "none" else [])


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_a_model_tells_the_weights_that_made_its_maps(size: tuple[int, int]) -> None:
    model = settled(tiny())
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps, weights, activations = model.inspect(images)
        features = model.pyramid(images)
        for stride, fuse, head, raw, weight, activation in zip(
            (32, 16, 8), model.fusions(), model.heads, maps, weights, activations, strict=True
        ):
            assert weight.shape == (2, 3, size[0] // stride, size[1] // stride) and weight.dtype == torch.float32
            assert ((weight >= 0) & (weight <= 1)).all()
            torch.testing.assert_close(weight.sum(dim=1), torch.ones_like(weight[:, 0]))
            blend = sum(resize(x) * weight[:, [i]] for i, (resize, x) in enumerate(zip(fuse.resize, features)))
            torch.testing.assert_close(activation, blend.abs().mean(dim=1, keepdim=True))
            torch.testing.assert_close(raw, head(fuse.expand(blend)).fold(model.num_classes), rtol=1e-4, atol=1e-4)


class FiveLevels(DetectorModel):
    """A detector that fuses the finest level first, and has two levels more than it fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = nn.ModuleList(fusion(level, "asff") for level in range(3))

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p5, p4, p3 = (functional.avg_pool2d(images, stride) for stride in (32, 16, 8))
        return p5.repeat(1, 4, 1, 1), p4.repeat(1, 2, 1, 1), p3.repeat(1, 2, 1, 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        features = self.pyramid(images)
        p3, p4, p5 = (fuse(features) for fuse in reversed(self.fusions()))
        return [p5[..., ::4, ::4], p5[..., ::2, ::2], p5, p4, p3]

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    @property
    def matcher(self) -> Matcher:
        raise NotImplementedError

    def normalizer(self, images: Tensor, targets: PackedTargets) -> int:
        raise NotImplementedError

    def loss(self, images: Tensor, targets: Tensor | PackedTargets, normalizer: Tensor | None = None) -> dict[str, Tensor]:
        raise NotImplementedError


def test_any_detector_with_asff_can_be_inspected() -> None:
    model, images = FiveLevels().eval(), torch.randn(1, 4, 128, 64)
    with torch.no_grad():
        maps, weights, activations = model.inspect(images)
        assert [tuple(m.shape[-2:]) for m in maps] == [(1, 1), (2, 1), (4, 2), (8, 4), (16, 8)]
        assert [tuple(w.shape) for w in weights] == [(1, 3, 4, 2), (1, 3, 8, 4), (1, 3, 16, 8)]
        for fuse, activation in zip(model.fusions(), activations, strict=True):
            fused = fuse.fuse(model.pyramid(images))
            torch.testing.assert_close(activation, fused.abs().mean(dim=1, keepdim=True))
