from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.triton_aggregation_network import (
    RAY_HIDDEN,
    WEIGHT_EPSILON,
    encode,
    merge_encoded,
    merge_shown,
    nothing,
    output,
    place,
    ray_feature,
    ray_hidden,
    statistics,
    view_corners,
    view_depth,
    view_ray,
)
from model.kernels.triton_layers import (
    add_numbers,
    add_products,
    add_rows,
    elu_slope,
    grouped,
    linear_backward,
    product,
    scatter,
    shuffle,
    shuffled,
    vector,
)


@triton.jit
def layer_backward(of_y, x, w, g, NAME: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr):
    SIZE: tl.constexpr = place("", C)
    K: tl.constexpr = x.shape[1]
    add_rows(g + place(NAME + "_bias", C), SIZE, of_y, 1, GROUPS)
    add_products(g + place(NAME, C), SIZE, of_y, x, K, GROUPS)
    return linear_backward(of_y, w + place(NAME, C), K, K)


@triton.jit
def output_backward(of_volume, m, w, g, num_views, C: tl.constexpr, GROUPS: tl.constexpr):
    STRIDE: tl.constexpr = 2 * C + 1
    SIZE: tl.constexpr = place("", C)
    of_sum = of_volume * elu_slope(output(m, w, num_views, C))
    add_rows(g + place("output_bias", C), SIZE, of_sum, 1, GROUPS)
    at = place("output", C)
    add_products(g + at, SIZE, of_sum, m.mean, STRIDE, GROUPS)
    add_products(g + at + C, SIZE, of_sum, m.variance, STRIDE, GROUPS)
    ratio = m.weight / (m.weight + WEIGHT_EPSILON) / num_views
    add_rows(g + at + 2 * C, SIZE, of_sum * ratio[:, None], STRIDE, GROUPS)
    of_mean = linear_backward(of_sum, w + at, STRIDE, C)
    of_variance = linear_backward(of_sum, w + at + C, STRIDE, C)
    last = tl.load(w + at + STRIDE * tl.arange(0, C) + 2 * C)[None, :]
    of_ratio = tl.sum(of_sum * last, 1) / num_views
    return of_mean, of_variance, of_ratio


@triton.jit
def encode_backward(e, x, share, of_total, of_weight, w, g, C: tl.constexpr, GROUPS: tl.constexpr):
    SIZE: tl.constexpr = place("", C)
    of_logit = of_weight * e.weight * (1 - e.weight)
    add_numbers(g + place("weight_out_bias", C), SIZE, of_logit, GROUPS)
    add_rows(g + place("weight_out", C), SIZE, of_logit[:, None] * e.weight_hidden, 1, GROUPS)
    of_sum = of_logit[:, None] * vector(w + place("weight_out", C), C) * elu_slope(e.weight_hidden)
    of_visible = layer_backward(of_sum, e.total * e.visibility[:, None], w, g, "weight_in", C, GROUPS)
    of_total += of_visible * e.visibility[:, None]
    of_vis = tl.sum(of_visible * e.total, 1) * e.visibility * (1 - e.visibility) * elu_slope(e.visibility_logit)

    at = C * C
    add_numbers(g + place("visibility_out_bias", C) + C, SIZE, of_vis, GROUPS)
    add_rows(g + place("visibility_out", C) + C * C, SIZE, of_vis[:, None] * e.visibility_hidden, 1, GROUPS)
    of_hidden = layer_backward(of_total * elu_slope(e.residual), e.visibility_hidden, w, g, "visibility_out", C, GROUPS)
    of_hidden += of_vis[:, None] * vector(w + place("visibility_out", C) + C * C, C)
    of_encoded = of_total + layer_backward(of_hidden * elu_slope(e.visibility_hidden), e.encoded * share, w, g, "visibility_in", C, GROUPS) * share
    of_hidden = layer_backward(of_encoded * elu_slope(e.encoded), e.hidden, w, g, "view_out", C, GROUPS) * elu_slope(e.hidden)
    at = place("view_in", C) + 2 * C
    add_products(g + at, SIZE, of_hidden, x, 3 * C, GROUPS)
    return of_hidden, linear_backward(of_hidden, w + at, 3 * C, C)


@triton.jit
def encoded_backward(views, w, g, shown, of_shown, st, share, m, of_volume, b, voxel, C: tl.constexpr, GROUPS: tl.constexpr):
    BLOCK: tl.constexpr = voxel.shape[0]
    of_mean, of_variance, of_ratio = output_backward(of_volume, m, w, g, views.num_views, C, GROUPS)
    rest = WEIGHT_EPSILON / (m.weight + WEIGHT_EPSILON)
    of_mean -= 2 * of_variance * m.mean * rest[:, None]
    constant = of_ratio * rest - tl.sum(of_variance * m.variance, 1)
    of_st = tl.zeros((BLOCK, 2 * C), tl.float32)
    for view in range(views.num_views):
        depth = view_depth(views, b, view, voxel)
        if tl.max(depth, 0) > 0:
            x = tl.load(shown + view * BLOCK * C)
            e = encode(x, st, share, w, C)
            off = e.total - m.mean
            weight = tl.where(depth > 0, e.weight / (m.weight + WEIGHT_EPSILON), 0.0)
            of_total = weight[:, None] * (of_mean + 2 * of_variance * off)
            of_weight = tl.sum((of_mean + of_variance * off) * off, 1) + constant
            of_weight = tl.where(depth > 0, of_weight / (m.weight + WEIGHT_EPSILON), 0.0)
            of_hidden, of_x = encode_backward(e, x, share, of_total, of_weight, w, g, C, GROUPS)
            of_st += of_hidden
            tl.store(of_shown + view * BLOCK * C, of_x)
    return of_st


@triton.jit
def show_backward(views, w, g, of_features, of_x, b, view, voxel, depth, C: tl.constexpr, GROUPS: tl.constexpr):
    SIZE: tl.constexpr = place("", C)
    at = view_corners(views, b, view, voxel, depth)
    number = b * views.num_views + view
    scatter(of_features + number * views.height * views.width * C, of_x, at, views.height, views.width, C)
    ray = view_ray(views, b, view, at, depth)
    hidden = ray_hidden(ray, w, C)
    of_sum = of_x * elu_slope(ray_feature(hidden, w, C))
    add_rows(g + place("ray_out_bias", C), SIZE, of_sum, 1, GROUPS)
    k = tl.arange(0, RAY_HIDDEN)
    R: tl.constexpr = voxel.shape[0] // GROUPS
    part = product(tl.permute(grouped(of_sum, GROUPS), (0, 2, 1)), grouped(hidden, GROUPS))
    pt = g + place("ray_out", C) + (tl.arange(0, GROUPS) * SIZE)[:, None, None] + (tl.arange(0, C) * (C // 2))[None, :, None] + k[None, None, :]
    mask = k[None, None, :] < C // 2
    tl.store(pt, tl.load(pt, mask=mask, other=0.0) + part, mask=mask)

    m = tl.load(w + place("ray_out", C) + shuffled(C)[:, None] * (C // 2) + k[None, :], mask=k[None, :] < C // 2, other=0.0)
    of_sum = product(shuffle(of_sum), m) * elu_slope(hidden)
    column = k[None, :]
    inputs = tl.where(column == 0, ray.x[:, None], tl.where(column == 1, ray.y[:, None], tl.where(column == 2, ray.z[:, None], tl.where(column == 3, ray.depth[:, None], tl.where(column == 4, 1.0, 0.0)))))
    part = product(tl.permute(grouped(of_sum, GROUPS), (0, 2, 1)), grouped(inputs, GROUPS))
    column = k[None, None, :]
    row = k[None, :, None]
    at = g + tl.where(column < 4, place("ray_in", C) + row * 4 + column, place("ray_in_bias", C) + row) + (tl.arange(0, GROUPS) * SIZE)[:, None, None]
    mask = (column < 5) & (row < C // 2)
    tl.store(at, tl.load(at, mask=mask, other=0.0) + part, mask=mask)


@triton.jit
def shown_backward(views, w, g, of_features, of_codes, shown, of_shown, of_st, m, share, b, voxel, C: tl.constexpr, GROUPS: tl.constexpr):
    BLOCK: tl.constexpr = voxel.shape[0]
    SIZE: tl.constexpr = place("", C)
    at = place("view_in", C)
    add_rows(g + place("view_in_bias", C), SIZE, of_st, 1, GROUPS)
    add_products(g + at, SIZE, of_st, m.mean, 3 * C, GROUPS)
    add_products(g + at + C, SIZE, of_st, m.variance, 3 * C, GROUPS)
    of_mean = linear_backward(of_st, w + at, 3 * C, C)
    of_variance = linear_backward(of_st, w + at + C, 3 * C, C)
    for view in range(views.num_views):
        depth = view_depth(views, b, view, voxel)
        if tl.max(depth, 0) > 0:
            of_x = tl.load(of_shown + view * BLOCK * C)
            part = share * (of_mean + 2 * of_variance * (tl.load(shown + view * BLOCK * C) - m.mean))
            of_x += tl.where((depth > 0)[:, None], part, 0.0)
            add_rows(of_codes + (b * views.num_views + view) * C, views.num_samples * views.num_views * C, of_x, 1, GROUPS)
            show_backward(views, w, g, of_features, of_x, b, view, voxel, depth, C, GROUPS)


@triton.jit
def backward_kernel(of_volume, views, w, g, scratch, of_features, of_codes, C: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr):
    blocks = tl.cdiv(views.num_voxels, BLOCK)
    program = tl.program_id(0)
    channel = tl.arange(0, C)[None, :]
    row = tl.arange(0, BLOCK)[:, None]
    g += program * GROUPS * place("", C)
    of_codes += program * GROUPS * views.num_samples * views.num_views * C
    shown = scratch + program * 2 * views.num_views * BLOCK * C + row * C + channel
    of_shown = shown + views.num_views * BLOCK * C
    for number in range(program, blocks * views.num_samples, tl.num_programs(0)):
        b = (number // blocks).to(tl.int64)
        voxel = (number % blocks) * BLOCK + tl.arange(0, BLOCK)
        m = merge_shown(views, w, shown, b, voxel, C)
        tl.debug_barrier()
        of_v = tl.load(of_volume + b * C * views.num_voxels + channel * views.num_voxels + voxel[:, None], mask=(voxel < views.num_voxels)[:, None], other=0.0)
        share = 1 / tl.maximum(m.weight, 1.0)[:, None]
        st = statistics(m, w, C)
        merged = merge_encoded(views, w, shown, st, share, b, voxel, C)
        of_st = encoded_backward(views, w, g, shown, of_shown, st, share, merged, of_v, b, voxel, C, GROUPS)
        tl.debug_barrier()
        shown_backward(views, w, g, of_features, of_codes, shown, of_shown, of_st, m, share, b, voxel, C, GROUPS)
        tl.debug_barrier()
