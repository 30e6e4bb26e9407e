"""Building blocks: padding, order and widths; what DropBlock drops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from train.model.blocks import LEAKY, RELU6, RFB, SPP, ConvBlock, DropBlock, scaled, unit


def test_pyramid_pooling_concatenates_input_then_5_9_13() -> None:
    x = torch.randn(1, 2, 11, 15, generator=torch.Generator().manual_seed(0))
    parts = SPP()(x).split(2, dim=1)
    assert len(parts) == 4
    torch.testing.assert_close(parts[0], x)
    for part, reach in zip(parts[1:], (2, 4, 6)):
        for row, column in ((0, 0), (5, 7), (10, 14), (3, 1)):
            window = x[..., max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
            torch.testing.assert_close(part[..., row, column], window.amax(dim=(2, 3)))


@pytest.mark.parametrize(("kernel", "stride", "groups", "size"), [(1, 1, 1, (5, 7)), (3, 1, 4, (5, 7)), (3, 2, 1, (3, 4))])
def test_conv_block_is_convolution_norm_activation(kernel: int, stride: int, groups: int, size: tuple[int, int]) -> None:
    block = ConvBlock(4, 8, kernel, stride, groups=groups)
    nn.init.uniform_(block.norm.running_mean)
    nn.init.uniform_(block.norm.running_var, 1e-6, 2e-5)  # so small that eps decides
    nn.init.normal_(block.norm.weight)
    nn.init.normal_(block.norm.bias)
    assert block.conv.bias is None
    x = torch.randn(2, 4, 5, 7)
    raw = functional.conv2d(x, block.conv.weight, None, stride, kernel // 2, 1, groups)
    mean, var, gain, shift = (
        t.reshape(1, -1, 1, 1) for t in (block.norm.running_mean, block.norm.running_var, block.norm.weight, block.norm.bias)
    )
    normal = (raw - mean) / torch.sqrt(var + 1e-5) * gain + shift
    out = block.eval()(x)
    assert out.shape == (2, 8, *size)
    torch.testing.assert_close(out, torch.where(normal > 0, normal, 0.1 * normal), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"act": LEAKY}, [-1.0, 3.0, 20.0]),
        ({"act": RELU6}, [0.0, 3.0, 6.0]),
        ({"linear": True}, [-10.0, 3.0, 20.0]),
    ],
)
def test_activations(options: dict[str, Any], want: list[float]) -> None:
    assert ConvBlock(1, 1, 1, **options).act(torch.tensor([-10.0, 3.0, 20.0])).tolist() == pytest.approx(want)


def test_a_unit_halves_the_channels_and_does_not_add() -> None:
    body = unit(16, 24, LEAKY)
    assert [tuple(conv.conv.weight.shape) for conv in body] == [(12, 16, 1, 1), (24, 12, 3, 3)]


@given(st.integers(1, 2048), st.floats(0.01, 4))
def test_scaled_channels_are_multiples_of_8_and_close(channels: int, width: float) -> None:
    result = scaled(channels, width)
    assert result >= 8 and result % 8 == 0
    assert result == 8 or abs(result - channels * width) <= 4
    assert scaled(channels + 8, width) >= result


@given(st.integers(1, 256))
def test_full_width_changes_nothing(eighths: int) -> None:
    assert scaled(eighths * 8, 1.0) == eighths * 8


def test_the_receptive_field_block_is_four_branches_of_plain_convolutions() -> None:
    block = RFB(16)
    x = torch.randn(2, 16, 9, 11)
    layouts = [[(1, 1)], [(1, 1), (3, 1)], [(1, 1), (3, 1), (3, 2)], [(1, 1), (5, 1), (3, 3)]]  # (kernel, dilation)
    parts = []
    for branch, layout in zip(block.branches, layouts):
        out = x
        assert len(branch) == len(layout)
        for conv, (kernel, dilation) in zip(branch, layout):
            assert conv.weight.shape == (4, out.shape[1], kernel, kernel) and conv.bias is not None
            out = functional.conv2d(out, conv.weight, conv.bias, padding=dilation * (kernel // 2), dilation=dilation)
        parts.append(out)
    torch.testing.assert_close(block(x), torch.cat(parts, dim=1))


def dropping(size: int, drop: float = 0.1) -> DropBlock:
    block = DropBlock(drop).train()
    block.size = size
    return block


def test_dropblock_passes_on_in_evaluation_and_before_its_schedule() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert dropping(3).eval()(x) is x
    assert dropping(0)(x) is x


@pytest.mark.parametrize("size", [1, 3, 7])
def test_dropblock_drops_a_tenth_in_whole_blocks_and_keeps_the_sum(size: int) -> None:
    torch.manual_seed(size)
    x = torch.ones(8, 16, 19, 26)
    out = dropping(size)(x)
    dropped = out == 0
    # Seeds fall everywhere and their blocks overlap, so that about a tenth is lost, a little less.
    expected = 0.1 * 19 * 26 / ((19 - size + 1) * (26 - size + 1))  # covered by a block, overlaps counted twice
    assert 0.7 * expected < float(dropped.float().mean()) < 1.1 * expected
    assert float(out.sum()) == pytest.approx(x.numel(), rel=1e-5)
    assert len(out.unique()) == 2  # what is kept is scaled alike
    # Taking off what is thinner than a block (beyond the border everything counts as dropped) changes nothing.
    grown = functional.pad(dropped.float(), [size // 2] * 4, value=1.0)
    cores = -functional.max_pool2d(-grown, size, stride=1)
    assert torch.equal(functional.max_pool2d(cores, size, stride=1, padding=size // 2) > 0, dropped)
    assert not torch.equal(dropped[:, 0], dropped[:, 1])  # each channel on its own


@pytest.mark.parametrize(("height", "width"), [(2, 9), (1, 1), (5, 4)])
def test_dropblock_takes_a_map_smaller_than_its_block(height: int, width: int) -> None:
    out = dropping(7, drop=0.5)(torch.randn(4, 8, height, width))
    assert torch.isfinite(out).all()
    assert (out == 0).any() and (out != 0).any()


def test_dropblock_in_half_precision_keeps_its_type() -> None:
    out = dropping(3)(torch.ones(4, 64, 40, 40, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert float(out.float().sum()) == pytest.approx(out.numel(), rel=1e-2)
