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
    ray_feature,
    ray_hidden,
    statistics,
    view_corners,
    view_depth,
    view_ray,
)
from model.kernels.triton_layers import (
    add_matrix,
    add_number,
    add_vector,
    elu_slope,
    layer,
    product,
    order,
    scatter,
    transposed,
    vector,
)


@triton.jit
def output_backward(of_volume, m, w, g, slot, size, num_views, C: tl.constexpr, GROUPS: tl.constexpr):
    STRIDE: tl.constexpr = 2 * C + 1
    of_sum = of_volume * elu_slope(output(m, w, num_views, C))
    add_vector(g.output_bias + slot, size, of_sum, GROUPS)
    add_matrix(g.output + slot, size, STRIDE, of_sum, m.mean, GROUPS, C)
    add_matrix(g.output + slot + C, size, STRIDE, of_sum, m.variance, GROUPS, C)
    ratio = m.weight / (m.weight + WEIGHT_EPSILON) / num_views
    ROWS: tl.constexpr = of_sum.shape[0] // GROUPS
    part = tl.sum(tl.reshape(of_sum * ratio[:, None], (GROUPS, ROWS, C)), 1)
    at = g.output + slot + 2 * C + (tl.arange(0, GROUPS) * size)[:, None] + (tl.arange(0, C) * STRIDE)[None, :]
    tl.store(at, tl.load(at) + part)
    of_mean = layer(of_sum, transposed(w.output, STRIDE, C, C))
    of_variance = layer(of_sum, transposed(w.output + C, STRIDE, C, C))
    last = tl.load(w.output + STRIDE * tl.arange(0, C) + 2 * C)[None, :]
    of_ratio = tl.sum(of_sum * last, 1) / num_views
    return of_mean, of_variance, of_ratio


@triton.jit
def encode_backward(e, x, share, of_total, of_weight, w, g, slot, size, C: tl.constexpr, GROUPS: tl.constexpr):
    of_logit = of_weight * e.weight * (1 - e.weight)
    add_number(g.weight_out_bias + slot, size, of_logit, GROUPS)
    add_vector(g.weight_out + slot, size, of_logit[:, None] * e.weight_hidden, GROUPS)
    of_sum = of_logit[:, None] * vector(w.weight_out, C) * elu_slope(e.weight_hidden)
    add_vector(g.weight_in_bias + slot, size, of_sum, GROUPS)
    add_matrix(g.weight_in + slot, size, C, of_sum, e.total * e.visibility[:, None], GROUPS, C)
    of_visible = layer(of_sum, transposed(w.weight_in, C, C, C))
    of_total += of_visible * e.visibility[:, None]
    of_vis = tl.sum(of_visible * e.total, 1) * e.visibility * (1 - e.visibility) * elu_slope(e.visibility_logit)

    of_sum = of_total * elu_slope(e.residual)
    add_vector(g.visibility_out_bias + slot, size, of_sum, GROUPS)
    add_number(g.visibility_out_bias + slot + C, size, of_vis, GROUPS)
    add_matrix(g.visibility_out + slot, size, C, of_sum, e.visibility_hidden, GROUPS, C)
    add_vector(g.visibility_out + slot + C * C, size, of_vis[:, None] * e.visibility_hidden, GROUPS)
    of_hidden = layer(of_sum, transposed(w.visibility_out, C, C, C)) + of_vis[:, None] * vector(w.visibility_out + C * C, C)
    of_sum = of_hidden * elu_slope(e.visibility_hidden)
    add_vector(g.visibility_in_bias + slot, size, of_sum, GROUPS)
    add_matrix(g.visibility_in + slot, size, C, of_sum, e.encoded * share, GROUPS, C)
    of_encoded = of_total + layer(of_sum, transposed(w.visibility_in, C, C, C)) * share

    of_sum = of_encoded * elu_slope(e.encoded)
    add_vector(g.view_out_bias + slot, size, of_sum, GROUPS)
    add_matrix(g.view_out + slot, size, 2 * C, of_sum, e.hidden, GROUPS, 2 * C)
    of_hidden = layer(of_sum, transposed(w.view_out, 2 * C, 2 * C, C)) * elu_slope(e.hidden)
    add_matrix(g.view_in + slot + 2 * C, size, 3 * C, of_hidden, x, GROUPS, C)
    return of_hidden, layer(of_hidden, transposed(w.view_in + 2 * C, 3 * C, C, 2 * C))


@triton.jit
def encoded_backward(views, w, g, slot, size, shown, of_shown, st, share, m, of_volume, b, voxel, C: tl.constexpr, GROUPS: tl.constexpr):
    BLOCK: tl.constexpr = voxel.shape[0]
    of_mean, of_variance, of_ratio = output_backward(of_volume, m, w, g, slot, size, views.num_views, C, GROUPS)
    rest = WEIGHT_EPSILON / (m.weight + WEIGHT_EPSILON)
    of_mean -= 2 * of_variance * m.mean * rest[:, None]
    of_st = tl.zeros((BLOCK, 2 * C), tl.float32)
    for view in range(views.num_views):
        depth = view_depth(views, b, view, voxel)
        if tl.max(depth, 0) > 0:
            x = tl.load(shown + view * BLOCK * C)
            e = encode(x, st, share, w, C)
            off = e.total - m.mean
            weight = tl.where(depth > 0, e.weight / (m.weight + WEIGHT_EPSILON), 0.0)
            of_total = weight[:, None] * (of_mean + 2 * of_variance * off)
            of_weight = tl.sum(of_mean * off + of_variance * (off * off - m.variance), 1) + of_ratio * rest
            of_weight = tl.where(depth > 0, of_weight / (m.weight + WEIGHT_EPSILON), 0.0)
            of_hidden, of_x = encode_backward(e, x, share, of_total, of_weight, w, g, slot, size, C, GROUPS)
            of_st += of_hidden
            tl.store(of_shown + view * BLOCK * C, of_x)
    return of_st


@triton.jit
def show_backward(views, w, g, slot, size, of_features, of_x, b, view, voxel, depth, C: tl.constexpr, GROUPS: tl.constexpr):
    at = view_corners(views, b, view, voxel, depth)
    number = b * views.num_views + view
    scatter(of_features + number * views.height * views.width * C, of_x, at, views.height, views.width, C)
    ray = view_ray(views, b, view, at, depth)
    hidden = ray_hidden(ray, w, C)
    of_sum = of_x * elu_slope(ray_feature(hidden, w, C))
    add_vector(g.ray_out_bias + slot, size, of_sum, GROUPS)
    add_matrix(g.ray_out + slot, size, C // 2, of_sum, hidden, GROUPS, C // 2)
    k = tl.arange(0, RAY_HIDDEN)
    m = tl.load(w.ray_out + order(C)[:, None] * (C // 2) + k[None, :], mask=k[None, :] < C // 2, other=0.0)
    of_sum = layer(of_sum, m) * elu_slope(hidden)
    column = k[None, :]
    inputs = tl.where(column == 0, ray.x[:, None], 0.0) + tl.where(column == 1, ray.y[:, None], 0.0)
    inputs += tl.where(column == 2, ray.z[:, None], 0.0) + tl.where(column == 3, ray.depth[:, None], 0.0)
    inputs += tl.where(column == 4, 1.0, 0.0)
    ROWS: tl.constexpr = voxel.shape[0] // GROUPS
    part = product(tl.permute(tl.reshape(of_sum, (GROUPS, ROWS, RAY_HIDDEN)), (0, 2, 1)), tl.reshape(inputs, (GROUPS, ROWS, RAY_HIDDEN)))
    column = k[None, None, :]
    row = k[None, :, None]
    at = tl.where(column < 4, g.ray_in + row * 4 + column, g.ray_in_bias + row) + slot + (tl.arange(0, GROUPS) * size)[:, None, None]
    mask = (column < 5) & (row < C // 2)
    tl.store(at, tl.load(at, mask=mask, other=0.0) + part, mask=mask)


@triton.jit
def shown_backward(views, w, g, slot, size, of_features, of_codes, shown, of_shown, of_st, m, share, b, voxel, C: tl.constexpr, GROUPS: tl.constexpr):
    BLOCK: tl.constexpr = voxel.shape[0]
    add_vector(g.view_in_bias + slot, size, of_st, GROUPS)
    add_matrix(g.view_in + slot, size, 3 * C, of_st, m.mean, GROUPS, C)
    add_matrix(g.view_in + slot + C, size, 3 * C, of_st, m.variance, GROUPS, C)
    of_mean = layer(of_st, transposed(w.view_in, 3 * C, C, 2 * C))
    of_variance = layer(of_st, transposed(w.view_in + C, 3 * C, C, 2 * C))
    for view in range(views.num_views):
        depth = view_depth(views, b, view, voxel)
        if tl.max(depth, 0) > 0:
            of_x = tl.load(of_shown + view * BLOCK * C)
            part = share * (of_mean + 2 * of_variance * (tl.load(shown + view * BLOCK * C) - m.mean))
            of_x += tl.where((depth > 0)[:, None], part, 0.0)
            add_vector(of_codes + (b * views.num_views + view) * C, views.num_samples * views.num_views * C, of_x, GROUPS)
            show_backward(views, w, g, slot, size, of_features, of_x, b, view, voxel, depth, C, GROUPS)


@triton.jit
def backward_kernel(of_volume, views, w, g, size, scratch, of_features, of_codes, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr):
    blocks = tl.cdiv(views.num_voxels, BLOCK)
    program = tl.program_id(0)
    channel = tl.arange(0, CHANNELS)[None, :]
    row = tl.arange(0, BLOCK)[:, None]
    slot = program * GROUPS * size
    of_codes += program * GROUPS * views.num_samples * views.num_views * CHANNELS
    shown = scratch + program * 2 * views.num_views * BLOCK * CHANNELS + row * CHANNELS + channel
    of_shown = shown + views.num_views * BLOCK * CHANNELS
    for number in range(program, blocks * views.num_samples, tl.num_programs(0)):
        b = (number // blocks).to(tl.int64)
        voxel = (number % blocks) * BLOCK + tl.arange(0, BLOCK)
        m = merge_shown(views, w, shown, b, voxel, CHANNELS)
        tl.debug_barrier()
        of_v = tl.load(of_volume + b * CHANNELS * views.num_voxels + channel * views.num_voxels + voxel[:, None], mask=(voxel < views.num_voxels)[:, None], other=0.0)
        merged = nothing(BLOCK, CHANNELS)
        share = 1 / tl.maximum(m.weight, 1.0)[:, None]
        st = statistics(m, w, CHANNELS)
        merged = merge_encoded(views, w, shown, st, share, b, voxel, CHANNELS)
        of_st = encoded_backward(views, w, g, slot, size, shown, of_shown, st, share, merged, of_v, b, voxel, CHANNELS, GROUPS)
        tl.debug_barrier()
        shown_backward(views, w, g, slot, size, of_features, of_codes, shown, of_shown, of_st, m, share, b, voxel, CHANNELS, GROUPS)
        tl.debug_barrier()
