"""The aggregation's forward kernel, and the passes over the views that the backward kernel repeats.

What views show is computed once for a block and kept in the program's memory `shown`, since its mean must be known
before anything is encoded. That memory is small enough to stay in the GPU's cache.

See the paper, section 3.2, model/volume/kernels/aggregation.py, and aggregation_views.py for shape letters.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from model.volume.kernels.triton.aggregation_network import EPSILON, encode, merge, shared_hidden, show
from model.volume.kernels.triton.aggregation_views import BLOCK, block_of, num_blocks, view_depth, volume_at

# Less than any sum of weights that counts beside epsilon, but not zero.
TINY = tl.constexpr(1e-30)


class Moments(NamedTuple):
    """Of each voxel's features in some views."""

    weight: tl.tensor  # [R] sum of the views' weights
    mean: tl.tensor  # [R, C]
    variance: tl.tensor  # [R, C]; while views are added, times the sum of weights


@triton.jit
def no_moments(R: tl.constexpr, C: tl.constexpr):
    zeros = tl.zeros((R, C), tl.float32)
    return Moments(tl.zeros((R,), tl.float32), zeros, zeros)


@triton.jit
def add_view(moments, x, weight):
    """Moments with one more view's features [R, C], of weight [R].

    Differences from the mean so far lose no digits where all views show nearly the same (West 1979), unlike a mean of
    squares.
    """
    total = moments.weight + weight
    off = x - moments.mean
    mean = moments.mean + off * (weight / tl.maximum(total, TINY))[:, None]
    return Moments(total, mean, moments.variance + weight[:, None] * off * (x - mean))


@triton.jit
def moments_of_shown(views, w, shown, block, C: tl.constexpr):
    """First pass: how many views see each voxel, mean and variance of what they show. Fills `shown`, [V, R, C]."""
    R: tl.constexpr = block.voxel.shape[0]
    moments = no_moments(R, C)
    for view in range(views.num_views):
        depth = view_depth(views, block, view)
        if tl.max(depth, 0) > 0:
            x = show(views, w, block, view, depth, C)
            tl.store(shown + view * R * C, x)
            moments = add_view(moments, x, tl.where(depth > 0, 1.0, 0.0))
    tl.debug_barrier()  # from here on threads read what others stored
    return Moments(moments.weight, moments.mean, moments.variance / tl.maximum(moments.weight, 1.0)[:, None])


@triton.jit
def moments_of_encoded(views, w, shown, shared, share, block, C: tl.constexpr):
    """Second pass: the sum of weights, and mean and variance for weights that are divided by that sum + epsilon."""
    R: tl.constexpr = block.voxel.shape[0]
    moments = no_moments(R, C)
    for view in range(views.num_views):
        depth = view_depth(views, block, view)
        if tl.max(depth, 0) > 0:
            encoding = encode(tl.load(shown + view * R * C), shared, share, w, C)
            moments = add_view(moments, encoding.feature, tl.where(depth > 0, encoding.weight, 0.0))
    total = moments.weight + EPSILON
    ratio = moments.weight / total  # sum of the divided weights
    rest = 1 / total * EPSILON
    of_rest = moments.mean * moments.mean * (ratio * rest * rest)[:, None]
    return Moments(moments.weight, moments.mean * ratio[:, None], moments.variance / total[:, None] + of_rest)


@triton.jit
def aggregate_views(views, w, scratch, volume, C: tl.constexpr):
    """The volume [B, C, N]. scratch is [programs, V, R, C]."""
    R: tl.constexpr = BLOCK
    shown = scratch + tl.program_id(0) * views.num_views * R * C
    shown += tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    for number in range(tl.program_id(0), num_blocks(views), tl.num_programs(0)):
        block = block_of(views, number)
        moments = moments_of_shown(views, w, shown, block, C)
        encoded = no_moments(R, C)
        if tl.max(moments.weight, 0) > 0:
            share = 1 / tl.maximum(moments.weight, 1.0)[:, None]
            shared = shared_hidden(moments, w, C)
            encoded = moments_of_encoded(views, w, shown, shared, share, block, C)
        features = merge(encoded, w, views.num_views, C)
        tl.store(volume + volume_at(views, block, C), features, mask=block.inside[:, None])
        tl.debug_barrier()  # the next block must not overwrite what other threads still read
