"""Which voxels and views the aggregation's kernels compute, and where: the paper, section 3.2, and
model/volume/kernels/aggregation.py.

A program computes a block of voxels at a time. It takes one view after another, but only those that see a voxel of the
block.

Shape letters: B samples, V views, C channels, h × w pixels, N voxels, R voxels of a block.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from model.volume.kernels.triton.layers import corners

# A block's sides. Views see more of the blocks that they see at all the more alike a block's sides are; eight numbers
# side by side are what the GPU's memory gives at a time.
BLOCK_COLUMNS = tl.constexpr(8)
BLOCK_ROWS = tl.constexpr(4)
BLOCK_LAYERS = tl.constexpr(2)
BLOCK = tl.constexpr(8 * 4 * 2)


class Views(NamedTuple):
    """The kernels' inputs but for the weights. In all but pixels and depth, samples and views lie side by side."""

    features: Tensor  # [B, V, h, w, C]
    codes: Tensor  # [B, V, C]
    pixels: Tensor  # [B, V, N, 2]
    depth: Tensor  # [B, V, N]
    reachable: Tensor  # [N]
    ray_matrices: Tensor  # [B, V, 3, 3]
    pixels_sample: int  # distance of samples in memory
    pixels_view: int
    depth_sample: int
    depth_view: int
    num_samples: int
    num_views: int
    num_voxels: int
    columns: int  # of voxels; N = layers * rows * columns, columns are side by side
    rows: int
    layers: int
    height: int
    width: int


class Block(NamedTuple):
    """Some voxels of a sample."""

    sample: tl.tensor
    voxel: tl.tensor  # [R]
    inside: tl.tensor  # [R] whether there is such a voxel


class Ray(NamedTuple):
    """What the ray encoder sees."""

    x: tl.tensor  # [R]
    y: tl.tensor
    z: tl.tensor
    depth: tl.tensor


@triton.jit
def num_blocks(views):
    """Of all samples."""
    columns, rows = tl.cdiv(views.columns, BLOCK_COLUMNS), tl.cdiv(views.rows, BLOCK_ROWS)
    return views.num_samples * columns * rows * tl.cdiv(views.layers, BLOCK_LAYERS)


@triton.jit
def block_of(views, number):
    """The block of this number."""
    columns, rows = tl.cdiv(views.columns, BLOCK_COLUMNS), tl.cdiv(views.rows, BLOCK_ROWS)
    layers = tl.cdiv(views.layers, BLOCK_LAYERS)
    place = tl.arange(0, BLOCK)
    column = number % columns * BLOCK_COLUMNS + place % BLOCK_COLUMNS
    row = number // columns % rows * BLOCK_ROWS + place // BLOCK_COLUMNS % BLOCK_ROWS
    layer = number // (columns * rows) % layers * BLOCK_LAYERS + place // (BLOCK_COLUMNS * BLOCK_ROWS)
    sample = (number // (columns * rows * layers)).to(tl.int64)
    inside = (column < views.columns) & (row < views.rows) & (layer < views.layers)
    return Block(sample, (layer * views.rows + row) * views.columns + column, inside)


@triton.jit
def volume_at(views, block, C: tl.constexpr):
    """Places [R, C] of the voxels in a volume [B, C, N]."""
    channel = tl.arange(0, C)[None, :]
    return block.sample * C * views.num_voxels + channel * views.num_voxels + block.voxel[:, None]


@triton.jit
def view_depth(views, block, view):
    """[R] depth, 0 where the view does not see the voxel."""
    at = views.depth + block.sample * views.depth_sample + view * views.depth_view + block.voxel
    return tl.load(at, mask=block.inside, other=0.0)


@triton.jit
def view_corners(views, block, view, depth):
    """The pixels around the voxels, without weight where a voxel is not seen or not reachable."""
    at = views.pixels + block.sample * views.pixels_sample + view * views.pixels_view + block.voxel * 2
    x = tl.load(at, mask=depth > 0, other=0.0)
    y = tl.load(at + 1, mask=depth > 0, other=0.0)
    reachable = tl.load(views.reachable + block.voxel, mask=depth > 0, other=0) != 0
    return corners(x, y, reachable, views.height, views.width)


@triton.jit
def view_ray(views, block, view, at, depth):
    """Ray directions that are sampled like the features, see `_pairs` in model/volume/kernels/aggregation.py."""
    columns, rows = at.left + at.right, at.upper + at.lower
    u = (at.left * (at.column + 0.5) + at.right * (at.column + 1.5)) * rows
    v = (at.upper * (at.row + 0.5) + at.lower * (at.row + 1.5)) * columns
    one = columns * rows
    m = views.ray_matrices + (block.sample * views.num_views + view) * 9
    x = tl.load(m) * u + tl.load(m + 1) * v + tl.load(m + 2) * one
    y = tl.load(m + 3) * u + tl.load(m + 4) * v + tl.load(m + 5) * one
    z = tl.load(m + 6) * u + tl.load(m + 7) * v + tl.load(m + 8) * one
    return Ray(x, y, z, depth)
