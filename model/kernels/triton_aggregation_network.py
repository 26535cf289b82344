from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton_layers import order, layer, corners, elu, matrix, product, sample, sigmoid, vector

WEIGHT_EPSILON = tl.constexpr(1e-8)
RAY_HIDDEN = tl.constexpr(16)
SMALLEST = tl.constexpr(1e-30)


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
def view_depth(views, sample_, view, voxel):
    at = views.depth + sample_ * views.depth_sample + view * views.depth_view + voxel
    return tl.load(at, mask=voxel < views.num_voxels, other=0.0)


@triton.jit
def view_corners(views, sample_, view, voxel, depth):
    at = views.pixels + sample_ * views.pixels_sample + view * views.pixels_view + voxel * 2
    x = tl.load(at, mask=depth > 0, other=0.0)
    y = tl.load(at + 1, mask=depth > 0, other=0.0)
    reachable = tl.load(views.reachable + voxel, mask=depth > 0, other=0) != 0
    return corners(x, y, reachable, views.height, views.width)


@triton.jit
def view_ray(views, sample_, view, at, depth):
    of_columns, of_rows = at.left + at.right, at.upper + at.lower
    u = (at.left * (at.column + 0.5) + at.right * (at.column + 1.5)) * of_rows
    v = (at.upper * (at.row + 0.5) + at.lower * (at.row + 1.5)) * of_columns
    one = of_columns * of_rows
    r = views.ray_matrices + (sample_ * views.num_views + view) * 9
    x = tl.load(r) * u + tl.load(r + 1) * v + tl.load(r + 2) * one
    y = tl.load(r + 3) * u + tl.load(r + 4) * v + tl.load(r + 5) * one
    z = tl.load(r + 6) * u + tl.load(r + 7) * v + tl.load(r + 8) * one
    return Ray(x, y, z, depth)


@triton.jit
def ray_hidden(ray, w, CHANNELS: tl.constexpr):
    k = tl.arange(0, RAY_HIDDEN)
    m = k < CHANNELS // 2
    pre = ray.x[:, None] * tl.load(w.ray_in + k * 4, mask=m, other=0.0)[None, :]
    pre += ray.y[:, None] * tl.load(w.ray_in + k * 4 + 1, mask=m, other=0.0)[None, :]
    pre += ray.z[:, None] * tl.load(w.ray_in + k * 4 + 2, mask=m, other=0.0)[None, :]
    pre += ray.depth[:, None] * tl.load(w.ray_in + k * 4 + 3, mask=m, other=0.0)[None, :]
    return elu(pre + tl.load(w.ray_in_bias + k, mask=m, other=0.0)[None, :])


@triton.jit
def ray_feature(hidden, w, CHANNELS: tl.constexpr):
    k = order(RAY_HIDDEN)[:, None]
    m = tl.load(w.ray_out + tl.arange(0, CHANNELS)[None, :] * (CHANNELS // 2) + k, mask=k < CHANNELS // 2, other=0.0)
    return elu(layer(hidden, m) + vector(w.ray_out_bias, CHANNELS))


@triton.jit
def show(views, w, b, view, voxel, depth, CHANNELS: tl.constexpr):
    at = view_corners(views, b, view, voxel, depth)
    ray = ray_feature(ray_hidden(view_ray(views, b, view, at, depth), w, CHANNELS), w, CHANNELS)
    number = b * views.num_views + view
    x = sample(views.features + number * views.height * views.width * CHANNELS, at, views.height, views.width, CHANNELS)
    return x + ray + vector(views.codes + number * CHANNELS, CHANNELS)


@triton.jit
def add_to(moments, x, weight):
    total = moments.weight + weight
    off = x - moments.mean
    mean = moments.mean + off * (weight / tl.maximum(total, SMALLEST))[:, None]
    return Moments(total, mean, moments.variance + weight[:, None] * off * (x - mean))


@triton.jit
def nothing(BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    return Moments(tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK, CHANNELS), tl.float32), tl.zeros((BLOCK, CHANNELS), tl.float32))


@triton.jit
def merge_shown(views, w, shown, b, voxel, CHANNELS: tl.constexpr):
    BLOCK: tl.constexpr = voxel.shape[0]
    moments = nothing(BLOCK, CHANNELS)
    for view in range(views.num_views):
        depth = view_depth(views, b, view, voxel)
        if tl.max(depth, 0) > 0:
            x = show(views, w, b, view, voxel, depth, CHANNELS)
            tl.store(shown + view * BLOCK * CHANNELS, x)
            moments = add_to(moments, x, tl.where(depth > 0, 1.0, 0.0))
    return Moments(moments.weight, moments.mean, moments.variance / tl.maximum(moments.weight, 1.0)[:, None])


@triton.jit
def statistics(m, w, CHANNELS: tl.constexpr):
    st = layer(m.mean, matrix(w.view_in, 3 * CHANNELS, CHANNELS, 2 * CHANNELS))
    st += layer(m.variance, matrix(w.view_in + CHANNELS, 3 * CHANNELS, CHANNELS, 2 * CHANNELS))
    return st + vector(w.view_in_bias, 2 * CHANNELS)


@triton.jit
def encode(shown, st, share, w, C: tl.constexpr):
    hidden = elu(layer(shown, matrix(w.view_in + 2 * C, 3 * C, C, 2 * C)) + st)
    encoded = elu(layer(hidden, matrix(w.view_out, 2 * C, 2 * C, C)) + vector(w.view_out_bias, C))
    vis_hidden = elu(layer(encoded * share, matrix(w.visibility_in, C, C, C)) + vector(w.visibility_in_bias, C))
    residual = elu(layer(vis_hidden, matrix(w.visibility_out, C, C, C)) + vector(w.visibility_out_bias, C))
    vis_logit = elu(tl.sum(vis_hidden * vector(w.visibility_out + C * C, C), 1) + tl.load(w.visibility_out_bias + C))
    visibility = sigmoid(vis_logit)
    total = encoded + residual
    weight_hidden = elu(layer(total * visibility[:, None], matrix(w.weight_in, C, C, C)) + vector(w.weight_in_bias, C))
    weight = sigmoid(tl.sum(weight_hidden * vector(w.weight_out, C), 1) + tl.load(w.weight_out_bias))
    return Encoding(hidden, encoded, vis_hidden, residual, vis_logit, visibility, total, weight_hidden, weight)


@triton.jit
def merge_encoded(views, w, shown, st, share, b, voxel, CHANNELS: tl.constexpr):
    BLOCK: tl.constexpr = voxel.shape[0]
    moments = nothing(BLOCK, CHANNELS)
    for view in range(views.num_views):
        depth = view_depth(views, b, view, voxel)
        if tl.max(depth, 0) > 0:
            e = encode(tl.load(shown + view * BLOCK * CHANNELS), st, share, w, CHANNELS)
            moments = add_to(moments, e.total, tl.where(depth > 0, e.weight, 0.0))
    rest = WEIGHT_EPSILON / (moments.weight + WEIGHT_EPSILON)
    ratio = moments.weight / (moments.weight + WEIGHT_EPSILON)
    variance = moments.variance / (moments.weight + WEIGHT_EPSILON)[:, None] + moments.mean * moments.mean * (ratio * rest * rest)[:, None]
    return Moments(moments.weight, moments.mean * ratio[:, None], variance)


@triton.jit
def output(m, w, num_views, CHANNELS: tl.constexpr):
    out = layer(m.mean, matrix(w.output, 2 * CHANNELS + 1, CHANNELS, CHANNELS))
    out += layer(m.variance, matrix(w.output + CHANNELS, 2 * CHANNELS + 1, CHANNELS, CHANNELS))
    last = tl.load(w.output + (2 * CHANNELS + 1) * tl.arange(0, CHANNELS) + 2 * CHANNELS)[None, :]
    ratio = m.weight / (m.weight + WEIGHT_EPSILON)
    out += (ratio / num_views)[:, None] * last
    return elu(out + vector(w.output_bias, CHANNELS))
