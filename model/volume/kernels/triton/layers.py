"""Pieces of Triton kernels (for the paper, section 3.2): layers of small networks over the rows of a block, and
bilinear sampling of feature maps.

All numbers are float32. A layer's weight lies in memory as in torch.nn.Linear, [out, in]; `stride` is the distance of
its rows, so that some of its columns are a weight too. All sizes are powers of two, and at least 16 in products.

Gradients of weights are sums over the rows of all blocks. A program adds up those of its blocks in memory of its own,
always in the same order. Each of `GROUPS` groups of a block's rows has its own sums there, SIZE numbers apart: a group
for a warp, so that no warp waits for another.

Shape letters: R rows of a block, K columns, C channels, h × w pixels.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

# "tf32x3" makes three products on tensor cores, together as precise as the one of "ieee" on the other cores.
PRECISION = tl.constexpr("tf32x3")
# The last 13 bits of a float32 are beyond TF32.
TF32_STEP = tl.constexpr(1 << 13)
LOG2_E = tl.constexpr(1.4426950408889634)


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
    """Unlike tl.exp it spends no instructions on denormal results."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def elu(x):
    """For x > 0 the larger one is x, otherwise exp(x) - 1. NaN stays NaN."""
    return tl.maximum(x, exp(tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)) - 1)


@triton.jit
def elu_slope(y):
    """The derivative of `elu` where its value is y."""
    return tl.minimum(y, 0.0) + 1


@triton.jit
def sigmoid(x):
    return 1 / (1 + exp(-x))


@triton.jit
def product(x, y, CUT_Y: tl.constexpr = False):
    """Matrix product of [.., M, K] and [.., K, N].

    Tensor cores take TF32 and add in float32. A float32 is the sum of two TF32, but for an error like a rounding error;
    the product of the two smaller ones is less than that. Where y is cut instead of rounded the compiler does not keep
    its parts from another product until then, for which there are no registers.
    """
    if PRECISION == "ieee":
        return tl.dot(x, y, input_precision="ieee")
    else:
        large_x = round_to_tf32(x)
        large_y = cut_to_tf32(y) if CUT_Y else round_to_tf32(y)
        total = tl.dot(x - large_x, large_y, input_precision="tf32")
        total = tl.dot(large_x, y - large_y, total, input_precision="tf32")
        return tl.dot(large_x, large_y, total, input_precision="tf32")


@triton.jit
def round_to_tf32(x):
    return ((x.to(tl.int32, bitcast=True) + TF32_STEP // 2) & -TF32_STEP).to(tl.float32, bitcast=True)


@triton.jit
def cut_to_tf32(x):
    return (x.to(tl.int32, bitcast=True) & -TF32_STEP).to(tl.float32, bitcast=True)


@triton.jit
def linear(x, weight, stride, OUT: tl.constexpr):
    """[R, K] through a weight [OUT, K] -> [R, OUT]."""
    return product(shuffle(x), tl.trans(shuffle(matrix(weight, stride, OUT, x.shape[1]))))


@triton.jit
def linear_backward(of_y, weight, stride, K: tl.constexpr):
    """The gradient [R, K] of `linear`'s x for that of its result [R, OUT]."""
    return product(shuffle(of_y), tl.trans(shuffle(tl.trans(matrix(weight, stride, of_y.shape[1], K)))))


@triton.jit
def shuffle(x):
    """[R, K] with its columns in another order, for both factors of a product that sums over them.

    In this order each thread takes just those columns that it holds if x comes from a product: tensor cores give a
    thread columns in pairs and take columns that are four apart.
    """
    pairs = tl.reshape(x, (x.shape[0], x.shape[1] // 8, 4, 2))
    return tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (x.shape[0], x.shape[1]))


@triton.jit
def matrix(weight, stride, OUT: tl.constexpr, K: tl.constexpr):
    """A weight [OUT, K]."""
    return tl.load(weight + tl.arange(0, OUT)[:, None] * stride + tl.arange(0, K)[None, :])


@triton.jit
def vector(at, K: tl.constexpr):
    """[1, K] numbers that lie side by side."""
    return tl.load(at + tl.arange(0, K))[None, :]


@triton.jit
def grouped(x, GROUPS: tl.constexpr):
    """[R, K] -> [GROUPS, R / GROUPS, K]. A group's rows are those that one warp holds of a product."""
    R: tl.constexpr = x.shape[0]
    K: tl.constexpr = x.shape[1]
    parts = tl.reshape(x, (R // (16 * GROUPS), GROUPS, 16, K))
    return tl.reshape(tl.permute(parts, (1, 0, 2, 3)), (GROUPS, R // GROUPS, K))


@triton.jit
def add_products(sums, SIZE: tl.constexpr, of_y, x, stride, GROUPS: tl.constexpr):
    """Adds the gradient of `linear`'s weight, [OUT, K], for its x [R, K] and that of its result [R, OUT]."""
    part = product(tl.permute(grouped(of_y, GROUPS), (0, 2, 1)), grouped(x, GROUPS), CUT_Y=True)
    at = sums + (tl.arange(0, GROUPS) * SIZE)[:, None, None]
    at += (tl.arange(0, of_y.shape[1]) * stride)[None, :, None] + tl.arange(0, x.shape[1])[None, None, :]
    tl.store(at, tl.load(at) + part)


@triton.jit
def add_rows(sums, size, of_y, stride, GROUPS: tl.constexpr):
    """Adds the sum over the rows of [R, K] to numbers `stride` apart."""
    part = tl.sum(grouped(of_y, GROUPS), 1)
    at = sums + (tl.arange(0, GROUPS) * size)[:, None] + (tl.arange(0, of_y.shape[1]) * stride)[None, :]
    tl.store(at, tl.load(at) + part)


@triton.jit
def add_numbers(sums, SIZE: tl.constexpr, of_y, GROUPS: tl.constexpr):
    """Adds the sum of [R]."""
    part = tl.sum(tl.reshape(of_y, (GROUPS, of_y.shape[0] // GROUPS)), 1)
    at = sums + tl.arange(0, GROUPS) * SIZE
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
def corner(at, height, width, NUMBER: tl.constexpr, C: tl.constexpr):
    """Weights [R, 1] of one of the four pixels, and places [R, C] of its channels in a map [h, w, C].

    Beyond the image the place is that of some pixel in it, since a mask for loading would cost more.
    """
    weight = (at.right if NUMBER % 2 == 1 else at.left) * (at.lower if NUMBER // 2 == 1 else at.upper)
    column = tl.minimum(at.column + 1, width - 1) if NUMBER % 2 == 1 else tl.maximum(at.column, 0)
    row = tl.minimum(at.row + 1, height - 1) if NUMBER // 2 == 1 else tl.maximum(at.row, 0)
    pixel = row * width + column
    return weight[:, None], (pixel * C)[:, None] + tl.arange(0, C)[None, :]


@triton.jit
def gather(features, at, height, width, C: tl.constexpr):
    """Bilinear samples [R, C] of a map [h, w, C]."""
    total = tl.zeros((at.row.shape[0], C), tl.float32)
    for number in tl.static_range(4):
        weight, place = corner(at, height, width, number, C)
        total += weight * tl.load(features + place)
    return total


@triton.jit
def scatter(of_features, of_samples, at, height, width, C: tl.constexpr):
    """Adds to the gradient of a map [h, w, C] that of `gather`'s samples [R, C]."""
    for number in tl.static_range(4):
        weight, place = corner(at, height, width, number, C)
        tl.atomic_add(of_features + place, weight * of_samples, mask=weight > 0, sem="relaxed")
