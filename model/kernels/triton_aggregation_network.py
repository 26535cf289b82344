from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton_layers import corners, elu, gather, linear, product, shuffle, shuffled, sigmoid, vector

WEIGHT_EPSILON = tl.constexpr(1e-8)
SMALLEST = tl.constexpr(1e-30)
RAY_HIDDEN = tl.constexpr(16)


@triton.constexpr_function
def shapes(channels):
    C = channels
    return {
        "ray_in": (C // 2, 4),
        "ray_in_bias": (C // 2,),
        "ray_out": (C, C // 2),
        "ray_out_bias": (C,),
        "view_in": (2 * C, 3 * C),
        "view_in_bias": (2 * C,),
        "view_out": (C, 2 * C),
        "view_out_bias": (C,),
        "visibility_in": (C, C),
        "visibility_in_bias": (C,),
        "visibility_out": (C + 1, C),
        "weight_in": (C, C),
        "weight_in_bias": (C,),
        "weight_out": (1, C),
        "output": (C, 2 * C + 1),
        "output_bias": (C,),
        "visibility_out_bias": (C + 1,),
        "weight_out_bias": (1,),
    }


@triton.constexpr_function
def place(name, channels):
    start = 0
    for other, shape in shapes(channels).items():
        if other == name:
            return start
        size = 1
        for extent in shape:
            size *= extent
        start += size
    return (start + 31) // 32 * 32


class Views(NamedTuple):
    features: Tensor
    codes: Tensor
    pixels: Tensor
    depth: Tensor
    reachable: Tensor
    ray_matrices: Tensor
    pixels_sample: int
    pixels_view: int
    depth_sample: int
    depth_view: int
    num_samples: int
    num_views: int
    num_voxels: int
    height: int
    width: int


class Moments(NamedTuple):
    weight: tl.tensor  # [R]
    mean: tl.tensor  # [R, C]
    variance: tl.tensor


class Ray(NamedTuple):
    x: tl.tensor
    y: tl.tensor
    z: tl.tensor
    depth: tl.tensor


class Encoding(NamedTuple):
    hidden: tl.tensor
    encoded: tl.tensor
    visibility_hidden: tl.tensor
    residual: tl.tensor
    visibility_logit: tl.tensor
    visibility: tl.tensor
    total: tl.tensor
    weight_hidden: tl.tensor
    weight: tl.tensor


@triton.jit
def view_depth(views, b, view, voxel):
    at = views.depth + b * views.depth_sample + view * views.depth_view + voxel
    return tl.load(at, mask=voxel < views.num_voxels, other=0.0)


@triton.jit
def view_corners(views, b, view, voxel, depth):
    at = views.pixels + b * views.pixels_sample + view * views.pixels_view + voxel * 2
    x = tl.load(at, mask=depth > 0, other=0.0)
    y = tl.load(at + 1, mask=depth > 0, other=0.0)
    reachable = tl.load(views.reachable + voxel, mask=depth > 0, other=0) != 0
    return corners(x, y, reachable, views.height, views.width)


@triton.jit
def view_ray(views, b, view, at, depth):
    of_columns, of_rows = at.left + at.right, at.upper + at.lower
    u = (at.left * (at.column + 0.5) + at.right * (at.column + 1.5)) * of_rows
    v = (at.upper * (at.row + 0.5) + at.lower * (at.row + 1.5)) * of_columns
    one = of_columns * of_rows
    r = views.ray_matrices + (b * views.num_views + view) * 9
    x = tl.load(r) * u + tl.load(r + 1) * v + tl.load(r + 2) * one
    y = tl.load(r + 3) * u + tl.load(r + 4) * v + tl.load(r + 5) * one
    z = tl.load(r + 6) * u + tl.load(r + 7) * v + tl.load(r + 8) * one
    return Ray(x, y, z, depth)


@triton.jit
def ray_hidden(ray, w, C: tl.constexpr):
    k = tl.arange(0, RAY_HIDDEN)
    m = k < C // 2
    at = w + place("ray_in", C) + k * 4
    pre = ray.x[:, None] * tl.load(at, mask=m, other=0.0)[None, :]
    pre += ray.y[:, None] * tl.load(at + 1, mask=m, other=0.0)[None, :]
    pre += ray.z[:, None] * tl.load(at + 2, mask=m, other=0.0)[None, :]
    pre += ray.depth[:, None] * tl.load(at + 3, mask=m, other=0.0)[None, :]
    return elu(pre + tl.load(w + place("ray_in_bias", C) + k, mask=m, other=0.0)[None, :])


@triton.jit
def ray_feature(hidden, w, C: tl.constexpr):
    k = shuffled(RAY_HIDDEN)[:, None]
    m = tl.load(w + place("ray_out", C) + tl.arange(0, C)[None, :] * (C // 2) + k, mask=k < C // 2, other=0.0)
    return elu(product(shuffle(hidden), m) + vector(w + place("ray_out_bias", C), C))


@triton.jit
def show(views, w, b, view, voxel, depth, C: tl.constexpr):
    at = view_corners(views, b, view, voxel, depth)
    ray = ray_feature(ray_hidden(view_ray(views, b, view, at, depth), w, C), w, C)
    number = b * views.num_views + view
    x = gather(views.features + number * views.height * views.width * C, at, views.height, views.width, C)
    return x + ray + vector(views.codes + number * C, C)


@triton.jit
def add_to(moments, x, weight):
    total = moments.weight + weight
    off = x - moments.mean
    mean = moments.mean + off * (weight / tl.maximum(total, SMALLEST))[:, None]
    return Moments(total, mean, moments.variance + weight[:, None] * off * (x - mean))


@triton.jit
def nothing(BLOCK: tl.constexpr, C: tl.constexpr):
    return Moments(tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK, C), tl.float32), tl.zeros((BLOCK, C), tl.float32))


@triton.jit
def merge_shown(views, w, shown, b, voxel, C: tl.constexpr):
    BLOCK: tl.constexpr = voxel.shape[0]
    moments = nothing(BLOCK, C)
    for view in range(views.num_views):
        depth = view_depth(views, b, view, voxel)
        if tl.max(depth, 0) > 0:
            x = show(views, w, b, view, voxel, depth, C)
            tl.store(shown + view * BLOCK * C, x)
            moments = add_to(moments, x, tl.where(depth > 0, 1.0, 0.0))
    return Moments(moments.weight, moments.mean, moments.variance / tl.maximum(moments.weight, 1.0)[:, None])


@triton.jit
def statistics(m, w, C: tl.constexpr):
    at = w + place("view_in", C)
    return linear(m.mean, at, 3 * C, 2 * C) + linear(m.variance, at + C, 3 * C, 2 * C) + vector(w + place("view_in_bias", C), 2 * C)


@triton.jit
def encode(shown, st, share, w, C: tl.constexpr):
    hidden = elu(linear(shown, w + place("view_in", C) + 2 * C, 3 * C, 2 * C) + st)
    encoded = elu(linear(hidden, w + place("view_out", C), 2 * C, C) + vector(w + place("view_out_bias", C), C))
    vis_hidden = elu(linear(encoded * share, w + place("visibility_in", C), C, C) + vector(w + place("visibility_in_bias", C), C))
    residual = elu(linear(vis_hidden, w + place("visibility_out", C), C, C) + vector(w + place("visibility_out_bias", C), C))
    vis_logit = elu(tl.sum(vis_hidden * vector(w + place("visibility_out", C) + C * C, C), 1) + tl.load(w + place("visibility_out_bias", C) + C))
    visibility = sigmoid(vis_logit)
    total = encoded + residual
    weight_hidden = elu(linear(total * visibility[:, None], w + place("weight_in", C), C, C) + vector(w + place("weight_in_bias", C), C))
    weight = sigmoid(tl.sum(weight_hidden * vector(w + place("weight_out", C), C), 1) + tl.load(w + place("weight_out_bias", C)))
    return Encoding(hidden, encoded, vis_hidden, residual, vis_logit, visibility, total, weight_hidden, weight)


@triton.jit
def merge_encoded(views, w, shown, st, share, b, voxel, C: tl.constexpr):
    BLOCK: tl.constexpr = voxel.shape[0]
    moments = nothing(BLOCK, C)
    for view in range(views.num_views):
        depth = view_depth(views, b, view, voxel)
        if tl.max(depth, 0) > 0:
            e = encode(tl.load(shown + view * BLOCK * C), st, share, w, C)
            moments = add_to(moments, e.total, tl.where(depth > 0, e.weight, 0.0))
    rest = WEIGHT_EPSILON / (moments.weight + WEIGHT_EPSILON)
    ratio = moments.weight / (moments.weight + WEIGHT_EPSILON)
    variance = moments.variance / (moments.weight + WEIGHT_EPSILON)[:, None] + moments.mean * moments.mean * (ratio * rest * rest)[:, None]
    return Moments(moments.weight, moments.mean * ratio[:, None], variance)


@triton.jit
def output(m, w, num_views, C: tl.constexpr):
    at = w + place("output", C)
    out = linear(m.mean, at, 2 * C + 1, C) + linear(m.variance, at + C, 2 * C + 1, C)
    last = tl.load(at + (2 * C + 1) * tl.arange(0, C) + 2 * C)[None, :]
    ratio = m.weight / (m.weight + WEIGHT_EPSILON)
    out += (ratio / num_views)[:, None] * last
    return elu(out + vector(w + place("output_bias", C), C))
