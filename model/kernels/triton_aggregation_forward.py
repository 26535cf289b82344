"""The aggregation's forward kernel, and the passes over the views that the backward kernel repeats.

See model/kernels/aggregation.py, and triton_aggregation_network.py for shape letters.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

import triton
import triton.language as tl

from model.kernels.triton_aggregation_network import (
    EPSILON,
    TINY,
    Moments,
    encode,
    merge,
    shared_hidden,
    show,
    view_depth,
)


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
def moments_of_shown(views, w, shown, sample, voxel, C: tl.constexpr):
    """First pass: how many views see each voxel, mean and variance of what they show. Fills `shown`, [V, R, C]."""
    R: tl.constexpr = voxel.shape[0]
    moments = no_moments(R, C)
    for view in range(views.num_views):
        depth = view_depth(views, sample, view, voxel)
        if tl.max(depth, 0) > 0:
            x = show(views, w, sample, view, voxel, depth, C)
            tl.store(shown + view * R * C, x)
            moments = add_view(moments, x, tl.where(depth > 0, 1.0, 0.0))
    # Every thread may read what others stored.
    tl.debug_barrier()
    return Moments(moments.weight, moments.mean, moments.variance / tl.maximum(moments.weight, 1.0)[:, None])


@triton.jit
def moments_of_encoded(views, w, shown, shared, share, sample, voxel, C: tl.constexpr):
    """Second pass: the sum of weights, and mean and variance for weights that are divided by that sum + epsilon."""
    R: tl.constexpr = voxel.shape[0]
    moments = no_moments(R, C)
    for view in range(views.num_views):
        depth = view_depth(views, sample, view, voxel)
        if tl.max(depth, 0) > 0:
            encoding = encode(tl.load(shown + view * R * C), shared, share, w, C)
            moments = add_view(moments, encoding.feature, tl.where(depth > 0, encoding.weight, 0.0))
    total = moments.weight + EPSILON
    ratio = moments.weight / total  # sum of the divided weights
    rest = 1 / total * EPSILON
    of_rest = moments.mean * moments.mean * (ratio * rest * rest)[:, None]
    return Moments(moments.weight, moments.mean * ratio[:, None], moments.variance / total[:, None] + of_rest)


@triton.jit
def aggregate_views(views, w, scratch, volume, C: tl.constexpr, R: tl.constexpr):
    """The volume [B, C, N]. scratch is [programs, V, R, C]."""
    blocks = tl.cdiv(views.num_voxels, R)
    channel = tl.arange(0, C)[None, :]
    shown = scratch + tl.program_id(0) * views.num_views * R * C + tl.arange(0, R)[:, None] * C + channel
    for block in range(tl.program_id(0), views.num_samples * blocks, tl.num_programs(0)):
        sample = (block // blocks).to(tl.int64)
        voxel = block % blocks * R + tl.arange(0, R)
        moments = moments_of_shown(views, w, shown, sample, voxel, C)
        encoded = no_moments(R, C)
        if tl.max(moments.weight, 0) > 0:
            share = 1 / tl.maximum(moments.weight, 1.0)[:, None]
            shared = shared_hidden(moments, w, C)
            encoded = moments_of_encoded(views, w, shown, shared, share, sample, voxel, C)
        features = merge(encoded, w, views.num_views, C)
        at = volume + sample * C * views.num_voxels + channel * views.num_voxels + voxel[:, None]
        tl.store(at, features, mask=(voxel < views.num_voxels)[:, None])
        # The next block's features must not come before another thread has read this one's.
        tl.debug_barrier()
