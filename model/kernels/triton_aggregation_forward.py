from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from model.kernels.triton_layers import corners, elu, matrix, product, sample, sigmoid, vector


class Encoding(NamedTuple):
    hidden: tl.tensor
    encoded: tl.tensor
    vis_hidden: tl.tensor
    residual: tl.tensor
    vis_logit: tl.tensor
    visibility: tl.tensor
    total: tl.tensor
    weight_hidden: tl.tensor
    weight: tl.tensor


@triton.jit
def load_pixel(views, b, view, voxel, depth):
    at = views.pixels + b * views.pixels_sample + view * views.pixels_view + voxel * 2
    x = tl.load(at, mask=depth > 0, other=0.0)
    y = tl.load(at + 1, mask=depth > 0, other=0.0)
    reachable = tl.load(views.reachable + voxel, mask=depth > 0, other=0) != 0
    return corners(x, y, reachable, views.height, views.width)


@triton.jit
def ray_hidden(views, w, b, view, at, depth, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr):
    tx, ty = at.left + at.right, at.upper + at.lower
    u = (at.left * (at.column + 0.5) + at.right * (at.column + 1.5)) * ty
    v = (at.upper * (at.row + 0.5) + at.lower * (at.row + 1.5)) * tx
    o = tx * ty
    r = views.ray_matrices + (b * views.num_views + view) * 9
    x = tl.load(r) * u + tl.load(r + 1) * v + tl.load(r + 2) * o
    y = tl.load(r + 3) * u + tl.load(r + 4) * v + tl.load(r + 5) * o
    z = tl.load(r + 6) * u + tl.load(r + 7) * v + tl.load(r + 8) * o
    k = tl.arange(0, HIDDEN)
    m = k < CHANNELS // 2
    pre = x[:, None] * tl.load(w.ray_in + k * 4, mask=m, other=0.0)[None, :]
    pre += y[:, None] * tl.load(w.ray_in + k * 4 + 1, mask=m, other=0.0)[None, :]
    pre += z[:, None] * tl.load(w.ray_in + k * 4 + 2, mask=m, other=0.0)[None, :]
    pre += depth[:, None] * tl.load(w.ray_in + k * 4 + 3, mask=m, other=0.0)[None, :]
    return elu(pre + tl.load(w.ray_in_bias + k, mask=m, other=0.0)[None, :])


@triton.jit
def encode(shown, statistics, share, w, C: tl.constexpr, PRECISION: tl.constexpr):
    hidden = elu(product(shown, matrix(w.view_in + 2 * C, 3 * C, C, 2 * C), PRECISION) + statistics)
    encoded = elu(product(hidden, matrix(w.view_out, 2 * C, 2 * C, C), PRECISION) + vector(w.view_out_bias, C))
    vis_hidden = elu(product(encoded * share, matrix(w.visibility_in, C, C, C), PRECISION) + vector(w.visibility_in_bias, C))
    residual = elu(product(vis_hidden, matrix(w.visibility_out, C, C, C), PRECISION) + vector(w.visibility_out_bias, C))
    vis_logit = elu(tl.sum(vis_hidden * vector(w.visibility_out + C * C, C), 1) + tl.load(w.visibility_out_bias + C))
    visibility = sigmoid(vis_logit)
    total = encoded + residual
    weight_hidden = elu(product(total * visibility[:, None], matrix(w.weight_in, C, C, C), PRECISION) + vector(w.weight_in_bias, C))
    weight = sigmoid(tl.sum(weight_hidden * vector(w.weight_out, C), 1) + tl.load(w.weight_out_bias))
    return Encoding(hidden, encoded, vis_hidden, residual, vis_logit, visibility, total, weight_hidden, weight)


@triton.jit
def show(views, w, b, view, voxel, depth, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr):
    at = load_pixel(views, b, view, voxel, depth)
    hidden = ray_hidden(views, w, b, view, at, depth, CHANNELS, HIDDEN)
    k = tl.arange(0, HIDDEN)
    m = tl.load(w.ray_out + tl.arange(0, CHANNELS)[None, :] * (CHANNELS // 2) + k[:, None], mask=(k < CHANNELS // 2)[:, None], other=0.0)
    ray = elu(product(hidden, m, PRECISION) + vector(w.ray_out_bias, CHANNELS))
    number = b * views.num_views + view
    x = sample(views.features + number * views.height * views.width * CHANNELS, at, views.height, views.width, CHANNELS)
    return x + ray + vector(views.codes + number * CHANNELS, CHANNELS)


@triton.jit
def depth_of(views, b, view, voxel):
    return tl.load(views.depth + b * views.depth_sample + view * views.depth_view + voxel, mask=voxel < views.num_voxels, other=0.0)


@triton.jit
def forward_kernel(views, w, scratch, volume, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    blocks = tl.cdiv(views.num_voxels, BLOCK)
    channel = tl.arange(0, CHANNELS)[None, :]
    mine = scratch + tl.program_id(0) * views.num_views * BLOCK * CHANNELS + tl.arange(0, BLOCK)[:, None] * CHANNELS + channel
    for number in range(tl.program_id(0), blocks * views.num_samples, tl.num_programs(0)):
        b = (number // blocks).to(tl.int64)
        voxel = (number % blocks) * BLOCK + tl.arange(0, BLOCK)
        count = tl.zeros((BLOCK,), tl.float32)
        mean = tl.zeros((BLOCK, CHANNELS), tl.float32)
        squares = tl.zeros((BLOCK, CHANNELS), tl.float32)
        for view in range(views.num_views):
            depth = depth_of(views, b, view, voxel)
            if tl.max(depth, 0) > 0:
                x = show(views, w, b, view, voxel, depth, CHANNELS, HIDDEN, PRECISION)
                tl.store(mine + view * BLOCK * CHANNELS, x)
                seen = tl.where(depth > 0, 1.0, 0.0)
                count += seen
                off = x - mean
                mean += off * (seen / tl.maximum(count, 1.0))[:, None]
                squares += seen[:, None] * off * (x - mean)
        m2 = tl.zeros((BLOCK, CHANNELS), tl.float32)
        s2 = tl.zeros((BLOCK, CHANNELS), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        if tl.max(count, 0) > 0:
            share = 1 / (count + 1e-8)[:, None]
            st = product(mean, matrix(w.view_in, 3 * CHANNELS, CHANNELS, 2 * CHANNELS), PRECISION)
            st += product(squares * share, matrix(w.view_in + CHANNELS, 3 * CHANNELS, CHANNELS, 2 * CHANNELS), PRECISION)
            st += vector(w.view_in_bias, 2 * CHANNELS)
            for view in range(views.num_views):
                depth = depth_of(views, b, view, voxel)
                if tl.max(depth, 0) > 0:
                    e = encode(tl.load(mine + view * BLOCK * CHANNELS), st, share, w, CHANNELS, PRECISION)
                    q = tl.where(depth > 0, e.weight, 0.0)
                    total += q
                    off = e.total - m2
                    m2 += off * (q / tl.maximum(total, 1e-30))[:, None]
                    s2 += q[:, None] * off * (e.total - m2)
        ratio = total / (total + 1e-8)
        s2 = s2 / (total + 1e-8)[:, None] + m2 * m2 * (ratio * (1 - ratio) * (1 - ratio))[:, None]
        m2 = m2 * ratio[:, None]
        out = product(m2, matrix(w.output, 2 * CHANNELS + 1, CHANNELS, CHANNELS), PRECISION)
        out += product(s2, matrix(w.output + CHANNELS, 2 * CHANNELS + 1, CHANNELS, CHANNELS), PRECISION)
        last = tl.load(w.output + (2 * CHANNELS + 1) * tl.arange(0, CHANNELS) + 2 * CHANNELS)[None, :]
        out += (ratio / views.num_views)[:, None] * last
        out = elu(out + vector(w.output_bias, CHANNELS))
        tl.store(volume + b * CHANNELS * views.num_voxels + channel * views.num_voxels + voxel[:, None], out, mask=(voxel < views.num_voxels)[:, None])
