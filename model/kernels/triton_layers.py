"""Pieces of Triton kernels: layers of small networks over the rows of a block, and bilinear sampling of feature maps.

All numbers are float32. A layer's weight lies in memory as in torch.nn.Linear, [out, in]; `stride` is the distance of
its rows, so that some of its columns are a weight too.

Gradients of weights are sums over all rows of all blocks. A program adds up those of its blocks in memory of its own,
always in the same order; each of the `GROUPS` parts of a block has its own sum there, so that the program's warps need
not wait for one another.

Shape letters: R rows of a block, K columns, C channels, h × w pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

# "tf32x3": three products on tensor cores, about as precise as one of "ieee", which computes on the other cores.
PRECISION = tl.constexpr("tf32x3")
LOG2_E = tl.constexpr(1.4426950408889634)
# TF32 has 13 bits less than float32.
TF32_STEP = tl.constexpr(1 << 13)


class Corners(NamedTuple):
    """The 2 × 2 pixels around each row's position. The bilinear weight of a pixel is its column's times its row's."""

    column: tl.tensor  # [R] int, of the left pixels; the right ones are one further
    row: tl.tensor  # [R] int, of the upper pixels
    left: tl.tensor  # [R] weights of the columns; zero beyond the image
    right: tl.tensor
    upper: tl.tensor  # [R] weights of the rows; zero beyond the image
    lower: tl.tensor


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2_E)  # tl.exp spends instructions on denormal results


@triton.jit
def elu(x):
    """Where x > 0 this is x, as exp(0) - 1 is less. A NaN stays one."""
    return tl.maximum(x, exp(tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)) - 1)


@triton.jit
def elu_slope(y):
    """The derivative of `elu` where its value is y."""
    return tl.minimum(y, 0.0) + 1


@triton.jit
def sigmoid(x):
    return 1 / (1 + exp(-x))


@triton.jit
def product(x, y):
    """Matrix product, also of matrices side by side."""
    if PRECISION == "ieee":
        return tl.dot(x, y, input_precision="ieee")
    else:
        large_x, large_y = round_to_tf32(x), round_to_tf32(y)
        total = tl.dot(x - large_x, large_y, input_precision="tf32")
        total = tl.dot(large_x, y - large_y, total, input_precision="tf32")
        return tl.dot(large_x, large_y, total, input_precision="tf32")


@triton.jit
def round_to_tf32(x):
    return ((x.to(tl.int32, bitcast=True) + TF32_STEP // 2) & -TF32_STEP).to(tl.float32, bitcast=True)


@triton.jit
def linear(x, weight, stride, OUT: tl.constexpr):
    """[R, K] through a weight [OUT, K] -> [R, OUT]."""
    K: tl.constexpr = x.shape[1]
    return product(shuffle(x), tl.load(weight + shuffled(K)[:, None] + tl.arange(0, OUT)[None, :] * stride))


@triton.jit
def linear_backward(of_y, weight, stride, K: tl.constexpr):
    """Gradient [R, K] of `linear`'s x for that of its result, [R, OUT]."""
    OUT: tl.constexpr = of_y.shape[1]
    return product(shuffle(of_y), tl.load(weight + tl.arange(0, K)[None, :] + shuffled(OUT)[:, None] * stride))


@triton.jit
def shuffle(x):
    """[R, K] with columns in the order `shuffled`.

    A product does not depend on the order of the columns that it sums over. In this one each thread gets the columns it
    already holds if x is a result of another product: tensor cores give a thread pairs of columns, and take columns
    that are four apart.
    """
    R: tl.constexpr = x.shape[0]
    K: tl.constexpr = x.shape[1]
    return tl.reshape(tl.permute(tl.reshape(x, (R, K // 8, 4, 2)), (0, 1, 3, 2)), (R, K))


@triton.jit
def shuffled(K: tl.constexpr):
    """Number of the column that `shuffle` puts in each place."""
    place = tl.arange(0, K)
    return place // 8 * 8 + place % 4 * 2 + place % 8 // 4


@triton.jit
def vector(at, SIZE: tl.constexpr):
    """[1, SIZE] numbers."""
    return tl.load(at + tl.arange(0, SIZE))[None, :]


@triton.jit
def grouped(x, GROUPS: tl.constexpr):
    """[R, K] -> [GROUPS, R / GROUPS, K]. A group's rows are those that one warp holds of a product."""
    R: tl.constexpr = x.shape[0]
    K: tl.constexpr = x.shape[1]
    parts = tl.reshape(x, (R // (16 * GROUPS), GROUPS, 16, K))
    return tl.reshape(tl.permute(parts, (1, 0, 2, 3)), (GROUPS, R // GROUPS, K))


@triton.jit
def add_products(sums, group_stride, of_y, x, stride, GROUPS: tl.constexpr):
    """Adds to the groups' sums the gradient of `linear`'s weight [OUT, K], for x [R, K] and that of its result."""
    K: tl.constexpr = x.shape[1]
    OUT: tl.constexpr = of_y.shape[1]
    part = product(tl.permute(grouped(of_y, GROUPS), (0, 2, 1)), grouped(x, GROUPS))
    at = sums + (tl.arange(0, GROUPS) * group_stride)[:, None, None]
    at += (tl.arange(0, OUT) * stride)[None, :, None] + tl.arange(0, K)[None, None, :]
    tl.store(at, tl.load(at) + part)


@triton.jit
def add_rows(sums, group_stride, of_y, stride, GROUPS: tl.constexpr):
    """Adds to the groups' sums those of [R, K] over the rows."""
    K: tl.constexpr = of_y.shape[1]
    part = tl.sum(grouped(of_y, GROUPS), 1)
    at = sums + (tl.arange(0, GROUPS) * group_stride)[:, None] + (tl.arange(0, K) * stride)[None, :]
    tl.store(at, tl.load(at) + part)


@triton.jit
def add_numbers(sums, group_stride, of_y, GROUPS: tl.constexpr):
    """Adds to the groups' sums those of [R]."""
    part = tl.sum(tl.reshape(of_y, (GROUPS, of_y.shape[0] // GROUPS)), 1)
    at = sums + tl.arange(0, GROUPS) * group_stride
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
def corner(at, height, width, C: tl.constexpr, RIGHT: tl.constexpr, LOWER: tl.constexpr):
    """Weights [R, 1] of one of the four pixels and where their channels lie in a map [h, w, C]: [R, C]."""
    column = tl.minimum(at.column + 1, width - 1) if RIGHT else tl.maximum(at.column, 0)
    row = tl.minimum(at.row + 1, height - 1) if LOWER else tl.maximum(at.row, 0)
    weight = (at.right if RIGHT else at.left) * (at.lower if LOWER else at.upper)
    return weight[:, None], ((row * width + column) * C)[:, None] + tl.arange(0, C)[None, :]


@triton.jit
def gather(features, at, height, width, C: tl.constexpr):
    """Bilinear samples [R, C] of a map [h, w, C]."""
    total = tl.zeros((at.row.shape[0], C), tl.float32)
    for number in tl.static_range(4):
        weight, index = corner(at, height, width, C, number % 2 == 1, number >= 2)
        total += weight * tl.load(features + index)
    return total


@triton.jit
def scatter(of_features, of_samples, at, height, width, C: tl.constexpr):
    """Adds to the gradient of a map [h, w, C] that of `gather`'s samples [R, C]."""
    for number in tl.static_range(4):
        weight, index = corner(at, height, width, C, number % 2 == 1, number >= 2)
        tl.atomic_add(of_features + index, weight * of_samples, mask=weight > 0, sem="relaxed")
