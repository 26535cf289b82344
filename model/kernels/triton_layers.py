"""Pieces of Triton kernels: layers of small networks over blocks of rows, and bilinear sampling of feature maps.

A layer's weight is stored as in torch.nn.Linear, [out, in], contiguous but for a stride between its rows, so that a
part of its columns is a weight too. All numbers are float32.

Shape letters: R rows of a block, C channels, h × w pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Corners(NamedTuple):
    """The 2×2 pixels around each row's position. The bilinear weight of a pixel is its column's times its row's."""

    column: tl.tensor  # [R] of the left pixels; the right ones are one further
    row: tl.tensor  # [R] of the upper pixels
    left: tl.tensor  # [R] weights of the columns; zero beyond the image
    right: tl.tensor
    upper: tl.tensor  # [R] weights of the rows; zero beyond the image
    lower: tl.tensor


@triton.jit
def elu(x):
    return tl.where(x > 0, x, tl.math.exp2(tl.minimum(x, 0.0) * 1.4426950408889634) - 1)


@triton.jit
def elu_slope(y):
    """The derivative of `elu` where its value is y."""
    return tl.where(y > 0, 1.0, y + 1)


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def coarse(x):
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def product(x, y, PRECISION: tl.constexpr):
    if PRECISION == "split":
        xh = coarse(x)
        yh = coarse(y)
        d = tl.dot(x - xh, yh, input_precision="tf32")
        d = tl.dot(xh, y - yh, d, input_precision="tf32")
        return tl.dot(xh, yh, d, input_precision="tf32")
    else:
        return tl.dot(x, y, input_precision=PRECISION)


@triton.jit
def matrix(weight, stride, IN: tl.constexpr, OUT: tl.constexpr):
    """A weight as [IN, OUT]."""
    row = tl.arange(0, IN)
    return tl.load(weight + tl.arange(0, OUT)[None, :] * stride + row[:, None])


@triton.jit
def vector(bias, SIZE: tl.constexpr):
    return tl.load(bias + tl.arange(0, SIZE))[None, :]


@triton.jit
def corners(x, y, present, height, width):
    """Around positions in pixels [R]; no weight where `present` is false."""
    column, row = tl.floor(x - 0.5), tl.floor(y - 0.5)
    to_right, to_lower = x - 0.5 - column, y - 0.5 - row
    left = tl.where(present & (column >= 0) & (column < width), 1 - to_right, 0.0)
    right = tl.where(present & (column >= -1) & (column < width - 1), to_right, 0.0)
    upper = tl.where((row >= 0) & (row < height), 1 - to_lower, 0.0)
    lower = tl.where((row >= -1) & (row < height - 1), to_lower, 0.0)
    return Corners(column.to(tl.int32), row.to(tl.int32), left, right, upper, lower)


@triton.jit
def sample(features, at, height, width, CHANNELS: tl.constexpr):
    """Bilinear samples [R, C] of a map [h, w, C]."""
    channel = tl.arange(0, CHANNELS)[None, :]
    left, right = tl.maximum(at.column, 0), tl.minimum(at.column + 1, width - 1)
    upper, lower = tl.maximum(at.row, 0), tl.minimum(at.row + 1, height - 1)
    total = (at.upper * at.left)[:, None] * tl.load(features + ((upper * width + left) * CHANNELS)[:, None] + channel)
    total += (at.upper * at.right)[:, None] * tl.load(features + ((upper * width + right) * CHANNELS)[:, None] + channel)
    total += (at.lower * at.left)[:, None] * tl.load(features + ((lower * width + left) * CHANNELS)[:, None] + channel)
    total += (at.lower * at.right)[:, None] * tl.load(features + ((lower * width + right) * CHANNELS)[:, None] + channel)
    return total
