"""Building blocks: the deformable convolution against scalar loops, padding, order and widths of the rest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from train.model.blocks import LEAKY, RELU6, RFB, SPP, ConvBlock, DeformConv, DropBlock, scaled, unit

Array = NDArray[np.float64]
GROUPS, TAPS = 4, 9


def pixel(plane: Array, row: int, column: int) -> float:
    """A pixel, zero outside the map."""
    inside = 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]
    return float(plane[row, column]) if inside else 0.0


def bilinear(plane: Array, y: float, x: float) -> float:
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            total += (1 - abs(y - row)) * (1 - abs(x - column)) * pixel(plane, row, column)
    return total


def deform_reference(x: Array, offsets: Array, weight: Array, bias: Array) -> Array:
    """DCNv1, 3x3, padding 1, one output at a time; offset channels ordered (group, tap row-major, [dy, dx])."""
    count, channels, height, width = x.shape
    out = np.zeros((count, weight.shape[0], height, width))
    for n, row, column in np.ndindex(count, height, width):
        samples = np.zeros((channels, TAPS))
        for channel, tap in np.ndindex(channels, TAPS):
            group = channel // (channels // GROUPS)
            dy, dx = (offsets[n, (group * TAPS + tap) * 2 + axis, row, column] for axis in range(2))
            samples[channel, tap] = bilinear(x[n, channel], row + tap // 3 - 1 + dy, column + tap % 3 - 1 + dx)
        for output in range(weight.shape[0]):
            out[n, output, row, column] = bias[output] + (weight[output].reshape(channels, TAPS) * samples).sum()
    return out


def deform_case(seed: int, channels: int, height: int, width: int, reach: float) -> tuple[DeformConv, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    conv = DeformConv(channels, GROUPS)
    nn.init.normal_(conv.weight, generator=generator)
    nn.init.normal_(conv.bias, generator=generator)
    x = torch.randn(2, channels, height, width, generator=generator)
    offsets = torch.randn(2, GROUPS * TAPS * 2, height, width, generator=generator) * reach
    return conv, x, offsets


def as_arrays(conv: DeformConv, x: Tensor, offsets: Tensor) -> tuple[Array, Array, Array, Array]:
    x64, offsets64, weight, bias = (t.detach().double().numpy() for t in (x, offsets, conv.weight, conv.bias))
    return x64, offsets64, weight, bias


# Fractions of a cell, several cells, and far beyond every border.
@pytest.mark.parametrize("reach", [0.3, 2.0, 40.0])
@pytest.mark.parametrize(("channels", "height", "width"), [(4, 1, 1), (8, 1, 5), (8, 4, 3), (4, 3, 6)])
def test_deformable_convolution_equals_scalar_loops(channels: int, height: int, width: int, reach: float) -> None:
    conv, x, offsets = deform_case(7, channels, height, width, reach)
    want = deform_reference(*as_arrays(conv, x, offsets))
    np.testing.assert_allclose(conv(x, offsets).detach().numpy(), want, rtol=1e-4, atol=1e-4)


def test_whole_cell_offsets_move_one_tap_of_one_group() -> None:
    conv, x, _ = deform_case(3, 4, 4, 5, 0.0)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    with torch.no_grad():
        conv.weight[0, 2, 0, 1] = 1.0  # output 0 sees channel 2 (group 2) through tap 1 (row -1, column 0)
    offsets = torch.zeros(2, GROUPS * TAPS * 2, 4, 5)
    offsets[:, (2 * TAPS + 1) * 2] = 2.0  # dy
    offsets[:, (2 * TAPS + 1) * 2 + 1] = -1.0  # dx
    moved = conv(x, offsets)[:, 0]
    torch.testing.assert_close(moved[:, :3, 1:], x[:, 2, 1:, :-1])
    assert (moved[:, 3] == 0).all() and (moved[:, :, 0] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 7), (8, 2)])
def test_without_displacement_it_is_an_ordinary_convolution(height: int, width: int) -> None:
    conv, x, offsets = deform_case(1, 16, height, width, 0.0)
    torch.testing.assert_close(conv(x, offsets), functional.conv2d(x, conv.weight, conv.bias, padding=1), rtol=1e-4, atol=1e-4)


def test_its_gradients_equal_finite_differences_of_the_loops() -> None:
    conv, x, offsets = deform_case(11, 4, 3, 4, 0.8)
    x.requires_grad_()
    offsets.requires_grad_()
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    conv(x, offsets).backward(cotangent)

    rng = np.random.default_rng(0)
    step = 1e-5  # small enough that hardly any sample crosses a pixel center
    arrays = as_arrays(conv, x, offsets)
    for operand, tensor in enumerate((x, offsets, conv.weight, conv.bias)):
        assert tensor.grad is not None
        for index in rng.choice(tensor.numel(), min(4, tensor.numel()), replace=False):
            ends = []
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[operand].flat[index] += sign * step
                ends.append(float((deform_reference(*moved) * cotangent.numpy()).sum()))
            assert float(tensor.grad.flatten()[index]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3, abs=1e-3)


def test_bfloat16_features_keep_a_float32_grid() -> None:
    conv, x, offsets = deform_case(5, 8, 3, 40, 1.0)
    features = conv.to(torch.bfloat16)(x.bfloat16(), offsets)
    assert features.dtype == torch.bfloat16
    want = deform_reference(*as_arrays(conv, x.bfloat16(), offsets))
    np.testing.assert_allclose(features.detach().float().numpy(), want, rtol=0.05, atol=0.15)


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
