"""Pieces of Triton kernels: small networks over the rows of a block, and bilinear sampling of feature maps.

A network's weight is stored as in torch.nn.Linear, [out, in]. `stride` is the distance of its rows, so that some of its
columns are a weight too. All numbers are float32.

Gradients of weights are sums over rows, of which there are millions. A program adds up those of its own rows in memory
that is its own, in an order that does not change; each of its `GROUPS` parts of a block has its own sum, so that a
program's warps need not wait for one another.

Shape letters: R rows of a block, C channels, h × w pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

# The first 13 bits of a float32's fraction are beyond TF32's precision.
TF32_MASK = tl.constexpr(-(1 << 13))
TF32_HALF = tl.constexpr(1 << 12)
LOG2_E = tl.constexpr(1.4426950408889634)


class Corners(NamedTuple):
    """The 2 × 2 pixels around each row's position. A pixel's bilinear weight is its column's times its row's."""

    column: tl.tensor  # [R] int, of the left pixels; the right ones are one further
    row: tl.tensor  # [R] int, of the upper pixels
    left: tl.tensor  # [R] weights of the columns; zero beyond the image
    right: tl.tensor
    upper: tl.tensor  # [R] weights of the rows; zero beyond the image
    lower: tl.tensor


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2_E)  # unlike tl.exp it does not spend instructions on denormal results


@triton.jit
def elu(x):
    return tl.where(x > 0, x, exp(tl.minimum(x, 0.0)) - 1)


@triton.jit
def elu_slope(y):
    """The derivative of `elu` where its value is y."""
    return tl.where(y > 0, 1.0, y + 1)


@triton.jit
def sigmoid(x):
    return 1 / (1 + exp(-x))


@triton.jit
def round_to_tf32(x):
    return ((x.to(tl.int32, bitcast=True) + TF32_HALF) & TF32_MASK).to(tl.float32, bitcast=True)


PRECISION = tl.constexpr("split")


@triton.jit
def product(x, y):
    if PRECISION == "split":
        large_x, large_y = round_to_tf32(x), round_to_tf32(y)
        total = tl.dot(x - large_x, large_y, input_precision="tf32")
        total = tl.dot(large_x, y - large_y, total, input_precision="tf32")
        return tl.dot(large_x, large_y, total, input_precision="tf32")
    else:
        return tl.dot(x, y, input_precision=PRECISION)


@triton.jit
def ordered(x):
    R: tl.constexpr = x.shape[0]
    K: tl.constexpr = x.shape[1]
    return tl.reshape(tl.permute(tl.reshape(x, (R, K // 8, 4, 2)), (0, 1, 3, 2)), (R, K))


@triton.jit
def order(K: tl.constexpr):
    k = tl.arange(0, K)
    return (k // 8) * 8 + (k % 4) * 2 + (k % 8) // 4


@triton.jit
def layer(x, w):
    return product(ordered(x), w)


@triton.jit
def matrix(weight, stride, IN: tl.constexpr, OUT: tl.constexpr):
    """A weight as [IN, OUT]."""
    return tl.load(weight + tl.arange(0, OUT)[None, :] * stride + order(IN)[:, None])


@triton.jit
def transposed(weight, stride, IN: tl.constexpr, OUT: tl.constexpr):
    """A weight as [OUT, IN]."""
    return tl.load(weight + order(OUT)[:, None] * stride + tl.arange(0, IN)[None, :])


@triton.jit
def vector(bias, SIZE: tl.constexpr):
    return tl.load(bias + tl.arange(0, SIZE))[None, :]


@triton.jit
def add_matrix(gradient, size, stride, of_output, x, GROUPS: tl.constexpr, columns):
    ROWS: tl.constexpr = x.shape[0] // GROUPS
    y = tl.reshape(of_output, (GROUPS, ROWS, of_output.shape[1]))
    x = tl.reshape(x, (GROUPS, ROWS, x.shape[1]))
    part = product(tl.permute(y, (0, 2, 1)), x)
    column = tl.arange(0, part.shape[2])[None, None, :]
    at = gradient + (tl.arange(0, GROUPS) * size)[:, None, None] + (tl.arange(0, part.shape[1]) * stride)[None, :, None] + column
    tl.store(at, tl.load(at, mask=column < columns, other=0.0) + part, mask=column < columns)


@triton.jit
def add_vector(gradient, size, of_output, GROUPS: tl.constexpr):
    ROWS: tl.constexpr = of_output.shape[0] // GROUPS
    part = tl.sum(tl.reshape(of_output, (GROUPS, ROWS, of_output.shape[1])), 1)
    at = gradient + (tl.arange(0, GROUPS) * size)[:, None] + tl.arange(0, part.shape[1])[None, :]
    tl.store(at, tl.load(at) + part)


@triton.jit
def add_number(gradient, size, of_output, GROUPS: tl.constexpr):
    part = tl.sum(tl.reshape(of_output, (GROUPS, of_output.shape[0] // GROUPS)), 1)
    at = gradient + tl.arange(0, GROUPS) * size
    tl.store(at, tl.load(at) + part)


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
def _corner(at, height, width, CHANNELS: tl.constexpr, RIGHT: tl.constexpr, LOWER: tl.constexpr):
    column = tl.minimum(at.column + 1, width - 1) if RIGHT else tl.maximum(at.column, 0)
    row = tl.minimum(at.row + 1, height - 1) if LOWER else tl.maximum(at.row, 0)
    weight = (at.right if RIGHT else at.left) * (at.lower if LOWER else at.upper)
    return weight[:, None], ((row * width + column) * CHANNELS)[:, None] + tl.arange(0, CHANNELS)[None, :]


@triton.jit
def sample(features, at, height, width, CHANNELS: tl.constexpr):
    """Bilinear samples [R, C] of a map [h, w, C]."""
    total = tl.zeros((at.row.shape[0], CHANNELS), tl.float32)
    for corner in tl.static_range(4):
        weight, index = _corner(at, height, width, CHANNELS, corner % 2 == 1, corner >= 2)
        total += weight * tl.load(features + index)
    return total


@triton.jit
def scatter(gradient, of_samples, at, height, width, CHANNELS: tl.constexpr):
    """Adds to the gradient of the map [h, w, C] that of `sample`'s [R, C]."""
    for corner in tl.static_range(4):
        weight, index = _corner(at, height, width, CHANNELS, corner % 2 == 1, corner >= 2)
        tl.atomic_add(gradient + index, weight * of_samples, mask=weight != 0, sem="relaxed")
