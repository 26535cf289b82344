"""What the forward and the backward kernel of the aggregation share: see model/kernels/aggregation.py.

A program computes a block of voxels at a time. It takes one view after another, but only those that see a voxel of the
block. It computes what they show once and keeps that in memory of its own, `shown`, since the mean must be known before
anything is encoded; that memory is small enough to stay in the GPU's cache.

All weights lie in one piece of memory, so that their places are constants and need no registers.

Shape letters: B samples, V views, C channels, h × w pixels, N voxels, R voxels of a block, H hidden channels of rays.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.aggregation import WEIGHT_EPSILON
from model.kernels.triton_layers import corners, elu, gather, linear, sigmoid, vector

EPSILON = tl.constexpr(WEIGHT_EPSILON)
# Less than any sum of weights that counts beside epsilon, but not zero.
TINY = tl.constexpr(1e-30)


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
    height: int
    width: int


class Ray(NamedTuple):
    """What the ray encoder sees."""

    x: tl.tensor  # [R]
    y: tl.tensor
    z: tl.tensor
    depth: tl.tensor


class Moments(NamedTuple):
    """Of each voxel's features in some views."""

    weight: tl.tensor  # [R] sum of the views' weights
    mean: tl.tensor  # [R, C]
    variance: tl.tensor  # [R, C]; while views are added, times the sum of weights


class Encoding(NamedTuple):
    """All results on the way from what a view shows to its encoded feature and weight, for the backward pass."""

    hidden: tl.tensor  # [R, 2C]
    encoded: tl.tensor  # [R, C] without the residual
    visibility_hidden: tl.tensor  # [R, C]
    residual: tl.tensor  # [R, C]
    visibility_logit: tl.tensor  # [R]
    visibility: tl.tensor  # [R]
    feature: tl.tensor  # [R, C]
    weight_hidden: tl.tensor  # [R, C]
    weight: tl.tensor  # [R]


@triton.constexpr_function
def ray_hidden(channels):
    """Hidden channels of rays, filled up to what products take."""
    return max(16, channels // 2)


@triton.constexpr_function
def shapes(channels):
    """Shapes in which `AggregationWeights` are stored, in their order: filled up with zeros to what products take, and
    to a multiple of four numbers, which are loaded together.
    """
    hidden = ray_hidden(channels)
    return {
        "ray_in": (hidden, 16),
        "ray_in_bias": (hidden,),
        "ray_out": (channels, hidden),
        "ray_out_bias": (channels,),
        "view_in": (2 * channels, 3 * channels),
        "view_in_bias": (2 * channels,),
        "view_out": (channels, 2 * channels),
        "view_out_bias": (channels,),
        "visibility_in": (channels, channels),
        "visibility_in_bias": (channels,),
        "visibility_out": (channels + 1, channels),
        "visibility_out_bias": (channels + 4,),
        "weight_in": (channels, channels),
        "weight_in_bias": (channels,),
        "weight_out": (1, channels),
        "weight_out_bias": (4,),
        "output": (channels, 2 * channels + 1),
        "output_bias": (channels,),
    }


@triton.constexpr_function
def place(name, channels):
    """Where the weight starts in the memory of all weights; "end" is its size."""
    start = 0
    for other, shape in shapes(channels).items():
        if other == name:
            break
        start += shape[0] * (shape[1] if len(shape) == 2 else 1)
    return start


@triton.jit
def view_depth(views, sample, view, voxel):
    """[R] depth, 0 where the view does not see the voxel."""
    at = views.depth + sample * views.depth_sample + view * views.depth_view + voxel
    return tl.load(at, mask=voxel < views.num_voxels, other=0.0)


@triton.jit
def view_corners(views, sample, view, voxel, depth):
    """The pixels around the voxels, without weight where a voxel is not seen or not reachable."""
    at = views.pixels + sample * views.pixels_sample + view * views.pixels_view + voxel * 2
    x = tl.load(at, mask=depth > 0, other=0.0)
    y = tl.load(at + 1, mask=depth > 0, other=0.0)
    reachable = tl.load(views.reachable + voxel, mask=depth > 0, other=0) != 0
    return corners(x, y, reachable, views.height, views.width)


@triton.jit
def view_ray(views, sample, view, at, depth):
    """Ray directions that are sampled like the features, see `_pairs` in model/kernels/aggregation.py."""
    columns, rows = at.left + at.right, at.upper + at.lower
    u = (at.left * (at.column + 0.5) + at.right * (at.column + 1.5)) * rows
    v = (at.upper * (at.row + 0.5) + at.lower * (at.row + 1.5)) * columns
    one = columns * rows
    m = views.ray_matrices + (sample * views.num_views + view) * 9
    x = tl.load(m) * u + tl.load(m + 1) * v + tl.load(m + 2) * one
    y = tl.load(m + 3) * u + tl.load(m + 4) * v + tl.load(m + 5) * one
    z = tl.load(m + 6) * u + tl.load(m + 7) * v + tl.load(m + 8) * one
    return Ray(x, y, z, depth)


@triton.jit
def layer(x, w, NAME: tl.constexpr, C: tl.constexpr):
    """[R, K] through a layer to C channels and ELU."""
    K: tl.constexpr = x.shape[1]
    return elu(linear(x, w + place(NAME, C), K, C) + vector(w + place(NAME + "_bias", C), C))


@triton.jit
def encode_ray(ray, w, C: tl.constexpr):
    """The ray encoder's hidden channels [R, H]. Four inputs are too few for tensor cores."""
    H: tl.constexpr = ray_hidden(C)
    at = w + place("ray_in", C) + tl.arange(0, H) * 16
    total = vector(w + place("ray_in_bias", C), H) + ray.x[:, None] * tl.load(at)[None, :]
    total += ray.y[:, None] * tl.load(at + 1)[None, :]
    total += ray.z[:, None] * tl.load(at + 2)[None, :]
    return elu(total + ray.depth[:, None] * tl.load(at + 3)[None, :])


@triton.jit
def show(views, w, sample, view, voxel, depth, C: tl.constexpr):
    """What a view shows at the voxels [R, C]: features + encoded rays + the view's code."""
    number = sample * views.num_views + view
    at = view_corners(views, sample, view, voxel, depth)
    features = gather(views.features + number * views.height * views.width * C, at, views.height, views.width, C)
    rays = layer(encode_ray(view_ray(views, sample, view, at, depth), w, C), w, "ray_out", C)
    return features + rays + vector(views.codes + number * C, C)


@triton.jit
def shared_hidden(shown, w, C: tl.constexpr):
    """The part [R, 2C] of the encoder's first layer that sees the moments of what all views show."""
    at = w + place("view_in", C)
    total = linear(shown.mean, at, 3 * C, 2 * C) + linear(shown.variance, at + C, 3 * C, 2 * C)
    return total + vector(w + place("view_in_bias", C), 2 * C)


@triton.jit
def encode(shown, shared, share, w, C: tl.constexpr):
    """What a view shows [R, C] -> its encoded feature and weight, as in `ViewAggregator.merge`; share is [R, 1]."""
    hidden = elu(linear(shown, w + place("view_in", C) + 2 * C, 3 * C, 2 * C) + shared)
    encoded = layer(hidden, w, "view_out", C)
    visibility_hidden = layer(encoded * share, w, "visibility_in", C)
    residual = layer(visibility_hidden, w, "visibility_out", C)
    last = tl.sum(visibility_hidden * vector(w + place("visibility_out", C) + C * C, C), 1)
    logit = elu(last + tl.load(w + place("visibility_out_bias", C) + C))
    visibility = sigmoid(logit)
    feature = encoded + residual
    weight_hidden = layer(feature * visibility[:, None], w, "weight_in", C)
    weight = tl.sum(weight_hidden * vector(w + place("weight_out", C), C), 1) + tl.load(w + place("weight_out_bias", C))
    return Encoding(
        hidden, encoded, visibility_hidden, residual, logit, visibility, feature, weight_hidden, sigmoid(weight)
    )


@triton.jit
def merge(moments, w, num_views, C: tl.constexpr):
    """The volume's features [R, C] for the moments of the encoded ones."""
    STRIDE: tl.constexpr = 2 * C + 1
    at = w + place("output", C)
    total = linear(moments.mean, at, STRIDE, C) + linear(moments.variance, at + C, STRIDE, C)
    total += mean_weight(moments, num_views)[:, None] * tl.load(at + 2 * C + tl.arange(0, C) * STRIDE)[None, :]
    return elu(total + vector(w + place("output_bias", C), C))


@triton.jit
def mean_weight(moments, num_views):
    """[R] over all views, of weights whose sum is one where a view sees the voxel."""
    return moments.weight / (moments.weight + EPSILON) / num_views
