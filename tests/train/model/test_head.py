"""The head: guiding folded into the exported map, the detached path to the feature adaption, the first predictions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from train.losses.head_output import HeadOutput
from train.model import decode_maps
from train.model.head import Head

ANCHORS = ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0), (32.0, 32.0))
STRIDE, CLASSES = 8, 3
DEPTH = 5 + CLASSES


def random_output(seed: int, height: int, width: int) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2, 4 * DEPTH, height, width, generator=generator)
    return HeadOutput(raw, torch.randn(2, 8, height, width, generator=generator))


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4))
def test_folding_the_guide_equals_decoding_with_guided_anchors(seed: int, height: int, width: int) -> None:
    output = random_output(seed, height, width)
    assert output.guide is not None
    decoded = decode_maps([output.fold(CLASSES)], (ANCHORS,), (STRIDE,))
    anchor_index = 0
    for anchor in range(4):  # the order of the decoded rows: anchor, row, column
        for row in range(height):
            for column in range(width):
                for image in range(2):
                    t = output.raw[image, anchor * DEPTH : (anchor + 1) * DEPTH, row, column].tolist()
                    g = output.guide[image, anchor * 2 : anchor * 2 + 2, row, column].tolist()
                    guided = [side * math.exp(value) for side, value in zip(ANCHORS[anchor], g)]
                    want = [
                        (1 / (1 + math.exp(-t[0])) + column) * STRIDE,
                        (1 / (1 + math.exp(-t[1])) + row) * STRIDE,
                        guided[0] * math.exp(t[2]),
                        guided[1] * math.exp(t[3]),
                        *(1 / (1 + math.exp(-value)) for value in t[4:]),
                    ]
                    assert decoded[image, anchor_index].tolist() == pytest.approx(want, rel=1e-5)
                anchor_index += 1
    assert decoded.shape == (2, anchor_index, DEPTH)


def test_the_receptive_field_block_sees_the_feature_first_and_the_guide_does_not_see_it() -> None:
    head = Head(16, CLASSES, 3, guided=True, adaption=True, rfb=True)
    assert head.guide is not None and head.adapt is not None
    nn.init.normal_(head.adapt.offsets.weight)
    x = torch.randn(2, 16, 3, 5)
    output = head(x)
    guide = head.guide(x)
    wide = torch.cat([branch(x) for branch in head.adapt.rfb.branches], dim=1)  # type: ignore[union-attr,operator]
    want = head.predict(head.adapt.conv(wide, head.adapt.offsets(guide)))
    torch.testing.assert_close(output.guide, guide)
    torch.testing.assert_close(output.raw, want)


def test_without_a_guide_the_map_is_exported_as_it_is() -> None:
    raw = torch.randn(1, 3 * DEPTH, 2, 2)
    assert HeadOutput(raw, None).fold(CLASSES) is raw


def test_the_guide_hears_nothing_from_the_feature_adaption() -> None:
    head = Head(16, CLASSES, 3, guided=True, adaption=True)
    assert head.guide is not None and head.adapt is not None
    x = torch.randn(2, 16, 3, 4, requires_grad=True)
    head(x).raw.square().sum().backward()
    assert head.guide.weight.grad is None and head.guide.bias is not None and head.guide.bias.grad is None
    for parameter in (head.adapt.offsets.weight, head.adapt.offsets.bias, head.adapt.conv.weight, head.predict.weight):
        assert parameter is not None and parameter.grad is not None and (parameter.grad != 0).any()

    guide = head(x).guide
    assert guide is not None
    guide.sum().backward()
    assert head.guide.weight.grad is not None and (head.guide.weight.grad != 0).any()


def test_the_guide_moves_the_taps() -> None:
    head = Head(16, CLASSES, 3, guided=True, adaption=True)
    assert head.guide is not None and head.guide.bias is not None
    x = torch.randn(1, 16, 3, 4)
    before = head(x).raw
    torch.nn.init.constant_(head.guide.bias, 30.0)
    assert not torch.allclose(before, head(x).raw)


def test_each_anchor_displaces_its_own_group_of_channels() -> None:
    """Offsets come from a convolution in 4 groups, one per guided anchor; no activation or residual follows."""
    head = Head(16, CLASSES, 3, guided=True, adaption=True)
    assert head.adapt is not None
    assert head.adapt.offsets.weight.shape == (72, 2, 1, 1)
    guide = torch.zeros(1, 8, 2, 2)
    still = head.adapt.offsets(guide)
    guide[:, 4:6] = 1.0  # the third anchor
    changed = (head.adapt.offsets(guide) != still).flatten(2).any(dim=2)[0]
    assert changed.nonzero().flatten().tolist() == list(range(36, 54))


@pytest.mark.parametrize(
    ("guided", "adaption", "anchors"), [(True, True, 4), (True, False, 4), (False, True, 3), (False, False, 3)]
)
def test_anchors_and_parts_of_each_variant(guided: bool, adaption: bool, anchors: int) -> None:
    head = Head(16, CLASSES, 3, guided, adaption)
    output = head(torch.randn(2, 16, 3, 4))
    assert output.raw.shape == (2, anchors * DEPTH, 3, 4)
    assert (output.guide is not None) == guided
    assert output.guide is None or output.guide.shape == (2, 8, 3, 4)
    assert (head.adapt is not None) == (guided and adaption)


def test_first_predictions_are_base_anchors_of_low_objectness() -> None:
    torch.manual_seed(0)
    head = Head(64, CLASSES, 3, guided=True, adaption=True)
    output = head(torch.randn(2, 64, 5, 5))
    raw = output.raw.reshape(2, 4, DEPTH, 5, 5)
    assert torch.sigmoid(raw[:, :, 4]).mean().item() == pytest.approx(0.01, rel=0.2)
    assert torch.sigmoid(raw[:, :, 5:]).mean().item() == pytest.approx(0.5, abs=0.1)
    assert output.guide is not None and output.guide.abs().mean() < 0.2
