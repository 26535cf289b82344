"""The networks of the aggregation's kernels, those of `ViewAggregator` (the paper, section 3.2), for a block of
voxels in one view.

All weights, `w`, lie in one piece of memory, so that their places are constants and need no registers.

Shape letters: C channels, R voxels of a block, H hidden channels of rays.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from model.volume.kernels.inputs import WEIGHT_EPSILON
from model.volume.kernels.triton.aggregation_views import view_corners, view_ray
from model.volume.kernels.triton.layers import elu, gather, linear, sigmoid, vector

EPSILON = tl.constexpr(WEIGHT_EPSILON)


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
def show(views, w, block, view, depth, C: tl.constexpr):
    """What a view shows at the voxels [R, C]: features + encoded rays + the view's code."""
    number = block.sample * views.num_views + view
    at = view_corners(views, block, view, depth)
    features = gather(views.features + number * views.height * views.width * C, at, views.height, views.width, C)
    rays = layer(encode_ray(view_ray(views, block, view, at, depth), w, C), w, "ray_out", C)
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
