"""Deformable convolution against scalar loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from train.model.deform_conv import DeformConv

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
