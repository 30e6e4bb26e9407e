"""Backbones and whole models: strides, channels, and the parameters of the published checkpoints."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.config import ModelConfig
from train.model import build_model
from train.model.backbones.darknet import DarkNet53, Residual
from train.model.backbones.mobilenet import InvertedResidual, MobileNetV2
from train.model.backbones.resnet import RESNET50, RESNET101, Bottleneck, ResNet
from train.model.blocks import SPP, activation
from train.model.neck import Neck
from train.recipes import recipe


@pytest.mark.parametrize(
    ("kind", "options", "channels"),
    [
        (DarkNet53, {}, (256, 512, 1024)),
        (DarkNet53, {"width": 0.125, "depth": 0.25}, (32, 64, 128)),
        (MobileNetV2, {}, (32, 96, 1280)),
        (MobileNetV2, {"width": 0.5}, (16, 48, 640)),
        (ResNet, {"blocks": RESNET50}, (512, 1024, 2048)),
        (ResNet, {"blocks": RESNET101, "width": 0.125, "depth": 0.25}, (64, 128, 256)),
    ],
)
def test_features_have_strides_8_16_32(
    kind: type[DarkNet53 | MobileNetV2 | ResNet], options: dict[str, Any], channels: tuple[int, int, int]
) -> None:
    with torch.device("meta"):  # shapes alone
        backbone = kind(**options)
        features = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32))]
    assert backbone.channels == channels


# Counted from the published layouts in millions; the fingerprints are `fingerprint(shapes)` of all tensors in
# keys_baseline.json, keys_asff.json, keys_mobile.json and keys_mobile_asff.json (name -> shape) of those checkpoints.
PUBLISHED = [
    ("yolov3-baseline", 75.55, "21056c38bbdff8364ee2a53463cb572c98c238c15bd135de9e7eefb98fdb0b7c"),
    ("yolov3-asff", 79.41, "a6ffbe4c2a634fb2217035a8ab3818e1ec29f3f07025964d438016914d93daff"),
    ("yolov3-mobilenetv2", 24.80, "01c7af177394290fc97900b877bfcdd473721c1c58d5aee7e600d400a3e94cb1"),
    ("yolov3-mobilenetv2-asff", 27.14, "3f18ece460f703d6880496ba21489c29ca92401237d44a7b62291bb45c3b2757"),
]


def fingerprint(shapes: list[list[int]]) -> str:
    """SHA-256 of the sorted multiset of shapes, so that names and order do not matter."""
    return hashlib.sha256(json.dumps(sorted(shapes)).encode()).hexdigest()


def full_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(recipe(name).model, 80)


@pytest.mark.parametrize(("name", "millions", "digest"), PUBLISHED)
def test_full_models_have_the_published_tensors(name: str, millions: float, digest: str) -> None:
    model = full_model(name)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    assert fingerprint([list(t.shape) for t in model.state_dict().values()]) == digest


@pytest.mark.parametrize(("depth", "counts"), [(1.0, [1, 2, 8, 8, 4]), (0.25, [1, 1, 2, 2, 1]), (0.3, [1, 1, 3, 3, 2])])
def test_depth_scales_residual_units_rounded_up(depth: float, counts: list[int]) -> None:
    with torch.device("meta"):
        stages = DarkNet53(depth=depth).stages
    assert [sum(isinstance(m, Residual) for m in stage.modules()) for stage in stages] == counts


# torchvision's resnet50 and resnet101 have 25,557,032 and 44,549,160 parameters, 2,049,000 of them in `fc`.
@pytest.mark.parametrize(("blocks", "parameters", "convolutions"), [(RESNET50, 23_508_032, 53), (RESNET101, 42_500_160, 104)])
def test_resnets_have_the_published_parameters(blocks: tuple[int, ...], parameters: int, convolutions: int) -> None:
    with torch.device("meta"):
        backbone = ResNet(blocks)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert sum(isinstance(m, nn.Conv2d) for m in backbone.modules()) == convolutions


def test_a_bottlenecks_stride_is_in_its_3x3_and_its_sum_is_rectified() -> None:
    block = Bottleneck(8, 8, 2).eval()
    x = torch.randn(2, 8, 6, 4)
    body = block.conv3(block.conv2(block.conv1(x)))
    torch.testing.assert_close(block(x), (body + block.downsample(x)).clamp(min=0))
    assert block(x).shape == (2, 32, 3, 2) and (body < 0).any()
    strides = [part.conv.stride for part in (block.conv1, block.conv2, block.conv3, block.downsample)]
    assert strides == [(1, 1), (2, 2), (1, 1), (2, 2)]
    assert isinstance(Bottleneck(32, 8, 1).downsample, nn.Identity)


def test_a_residual_unit_adds_its_input() -> None:
    block = Residual(8).eval()
    x = torch.randn(1, 8, 3, 4)
    torch.testing.assert_close(block(x), x + block.body(x))


@pytest.mark.parametrize(
    ("outputs", "stride", "expansion", "adds"), [(8, 1, 6, True), (8, 2, 6, False), (16, 1, 6, False), (8, 1, 1, True)]
)
def test_inverted_residuals_add_where_shapes_agree(outputs: int, stride: int, expansion: int, adds: bool) -> None:
    block = InvertedResidual(8, outputs, stride, expansion).eval()
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.zeros_(norm.weight)  # silences the body
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(x), x if adds else torch.zeros(1, outputs, 4 // stride, 4 // stride))


def test_the_last_convolution_of_an_inverted_residual_is_linear() -> None:
    block = InvertedResidual(8, 16, 1, 6).eval()
    x = torch.randn(1, 8, 4, 4)
    last = block.body[-1]
    torch.testing.assert_close(block(x), last.norm(last.conv(block.body[:-1](x))))


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model(ModelConfig(width=0.125, depth=0.25), 2).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def layers(module: nn.Module) -> list[tuple[int, int] | str]:
    """(channels out, kernel) of its convolutions, and the pooling, in order."""
    found: list[tuple[int, int] | str] = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            found.append((part.out_channels, part.kernel_size[0]))
        elif isinstance(part, SPP):
            found.append("spp")
    return found


@pytest.mark.parametrize("backbone", [DarkNet53, MobileNetV2])
def test_the_neck_is_laid_out_as_published(backbone: type[DarkNet53 | MobileNetV2]) -> None:
    with torch.device("meta"):
        neck = Neck(backbone().channels, 1.0, backbone.act)
    assert layers(neck.p5) == [(512, 1), (1024, 3), (512, 1), "spp", (512, 1), (1024, 3), (512, 1)]
    assert layers(neck.to_p4) + layers(neck.p4) == [(256, 1), (256, 1), (512, 3), (256, 1), (512, 3), (256, 1)]
    assert layers(neck.to_p3) + layers(neck.p3) == [(128, 1), (128, 1), (256, 3), (128, 1), (256, 3), (128, 1)]
    assert {type(m) for m in neck.modules()} & {nn.LeakyReLU, nn.ReLU6} == {type(activation(backbone.act))}


def test_the_neck_puts_the_upsampled_feature_first() -> None:
    torch.manual_seed(0)
    neck = Neck((8, 16, 128), 0.125, "leaky").eval()
    c3, c4, c5 = torch.randn(1, 8, 8, 12), torch.randn(1, 16, 4, 6), torch.randn(1, 128, 2, 3)
    p5, p4, p3 = neck(c3, c4, c5)
    torch.testing.assert_close(p5, neck.p5(c5))
    torch.testing.assert_close(p4, neck.p4(torch.cat([doubled(neck.to_p4(p5)), c4], dim=1)))
    torch.testing.assert_close(p3, neck.p3(torch.cat([doubled(neck.to_p3(p4)), c3], dim=1)))


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
