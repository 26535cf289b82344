"""The aggregation's backward kernel: the paper, section 3.2, and model/volume/kernels/aggregation.py, and
aggregation_views.py for letters.

It computes a block of voxels again and differentiates that by hand. `of_x` is the gradient of the loss for x, and `g`
are the program's sums of the weights' gradients, which lie in memory like the weights `w`.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

import triton
import triton.language as tl

from model.volume.kernels.triton.aggregation_forward import moments_of_encoded, moments_of_shown
from model.volume.kernels.triton.aggregation_network import (
    EPSILON,
    encode,
    encode_ray,
    layer,
    mean_weight,
    merge,
    place,
    shared_hidden,
)
from model.volume.kernels.triton.aggregation_views import (
    BLOCK,
    block_of,
    num_blocks,
    view_corners,
    view_depth,
    view_ray,
    volume_at,
)
from model.volume.kernels.triton.layers import (
    add_numbers,
    add_products,
    add_rows,
    elu,
    elu_slope,
    linear_backward,
    scatter,
    vector,
)


@triton.jit
def layer_backward(of_y, y, x, w, g, NAME: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr):
    """The gradient [R, K] of the input x of `layer`, whose output is y [R, C]. Adds those of weight and bias."""
    SIZE: tl.constexpr = place("end", C)
    K: tl.constexpr = x.shape[1]
    of_sum = of_y * elu_slope(y)
    add_rows(g + place(NAME + "_bias", C), SIZE, of_sum, 1, GROUPS)
    add_products(g + place(NAME, C), SIZE, of_sum, x, K, GROUPS)
    return linear_backward(of_sum, w + place(NAME, C), K, K)


@triton.jit
def merge_backward(of_volume, moments, w, g, num_views, C: tl.constexpr, GROUPS: tl.constexpr):
    """Gradients of the inputs of `merge`: mean [R, C], variance [R, C] and mean weight [R]."""
    SIZE: tl.constexpr = place("end", C)
    STRIDE: tl.constexpr = 2 * C + 1
    at = place("output", C)
    of_sum = of_volume * elu_slope(merge(moments, w, num_views, C))
    add_rows(g + place("output_bias", C), SIZE, of_sum, 1, GROUPS)
    add_products(g + at, SIZE, of_sum, moments.mean, STRIDE, GROUPS)
    add_products(g + at + C, SIZE, of_sum, moments.variance, STRIDE, GROUPS)
    add_rows(g + at + 2 * C, SIZE, of_sum * mean_weight(moments, num_views)[:, None], STRIDE, GROUPS)
    of_mean = linear_backward(of_sum, w + at, STRIDE, C)
    of_variance = linear_backward(of_sum, w + at + C, STRIDE, C)
    return of_mean, of_variance, tl.sum(of_sum * tl.load(w + at + 2 * C + tl.arange(0, C) * STRIDE)[None, :], 1)


@triton.jit
def encode_backward(of_feature, of_weight, e, at_shown, share, w, g, C: tl.constexpr, GROUPS: tl.constexpr):
    """Gradients of what a view shows [R, C] and of `shared_hidden` [R, 2C] for those of `encode`'s results."""
    SIZE: tl.constexpr = place("end", C)
    of_logit = of_weight * e.weight * (1 - e.weight)
    add_numbers(g + place("weight_out_bias", C), SIZE, of_logit, GROUPS)
    add_rows(g + place("weight_out", C), SIZE, of_logit[:, None] * e.weight_hidden, 1, GROUPS)
    of_hidden = of_logit[:, None] * vector(w + place("weight_out", C), C)
    visible = e.feature * e.visibility[:, None]
    of_visible = layer_backward(of_hidden, e.weight_hidden, visible, w, g, "weight_in", C, GROUPS)
    of_feature += of_visible * e.visibility[:, None]

    of_logit = tl.sum(of_visible * e.feature, 1) * e.visibility * (1 - e.visibility) * elu_slope(e.visibility_logit)
    last = place("visibility_out", C) + C * C
    add_numbers(g + place("visibility_out_bias", C) + C, SIZE, of_logit, GROUPS)
    add_rows(g + last, SIZE, of_logit[:, None] * e.visibility_hidden, 1, GROUPS)
    of_hidden = layer_backward(of_feature, e.residual, e.visibility_hidden, w, g, "visibility_out", C, GROUPS)
    of_hidden += of_logit[:, None] * vector(w + last, C)
    scaled = e.encoded * share
    of_scaled = layer_backward(of_hidden, e.visibility_hidden, scaled, w, g, "visibility_in", C, GROUPS)
    of_encoded = of_feature + of_scaled * share

    of_shared = layer_backward(of_encoded, e.encoded, e.hidden, w, g, "view_out", C, GROUPS) * elu_slope(e.hidden)
    at = place("view_in", C) + 2 * C
    add_products(g + at, SIZE, of_shared, tl.load(at_shown), 3 * C, GROUPS)
    return linear_backward(of_shared, w + at, 3 * C, C), of_shared


@triton.jit
def encoded_backward(
    of_volume, views, w, g, shown, of_shown, shared, share, block, C: tl.constexpr, GROUPS: tl.constexpr
):
    """Second and third pass: all that comes behind `shared_hidden`, whose gradient this returns. Fills `of_shown`.

    A view's feature is e and its weight q; Q is the sum of q + epsilon; M and S are mean and variance of e for the
    weights q / Q. Then of_e = q / Q (of_M + 2 of_S (e - M)), and of_q is the sum over the channels of
    (of_M (e - M) + of_S ((e - M)² - S)) / Q. As the weights' sum is a little less than one, S depends on M too.
    """
    R: tl.constexpr = block.voxel.shape[0]
    moments = moments_of_encoded(views, w, shown, shared, share, block, C)
    total = moments.weight + EPSILON
    of_mean, of_variance, of_mean_weight = merge_backward(of_volume, moments, w, g, views.num_views, C, GROUPS)
    rest = 1 / total * EPSILON  # of the weights' sum to one
    of_mean -= 2 * of_variance * moments.mean * rest[:, None]
    constant = of_mean_weight / views.num_views * rest - tl.sum(of_variance * moments.variance, 1)
    of_shared = tl.zeros((R, 2 * C), tl.float32)
    for view in range(views.num_views):
        depth = view_depth(views, block, view)
        if tl.max(depth, 0) > 0:
            e = encode(tl.load(shown + view * R * C), shared, share, w, C)
            off = e.feature - moments.mean
            of_feature = tl.where(depth > 0, e.weight / total, 0.0)[:, None] * (of_mean + 2 * of_variance * off)
            of_weight = (tl.sum((of_mean + of_variance * off) * off, 1) + constant) / total
            of_weight = tl.where(depth > 0, of_weight, 0.0)
            of_x, of_shared_here = encode_backward(
                of_feature, of_weight, e, shown + view * R * C, share, w, g, C, GROUPS
            )
            tl.store(of_shown + view * R * C, of_x)
            of_shared += of_shared_here
    tl.debug_barrier()  # from here on threads read what others stored
    return of_shared


@triton.jit
def show_backward(of_x, views, w, g, of_features, block, view, depth, C: tl.constexpr, GROUPS: tl.constexpr):
    """Adds the gradients of features and ray encoder for that of `show`'s result."""
    SIZE: tl.constexpr = place("end", C)
    at = view_corners(views, block, view, depth)
    number = block.sample * views.num_views + view
    scatter(of_features + number * views.height * views.width * C, of_x, at, views.height, views.width, C)
    ray = view_ray(views, block, view, at, depth)
    hidden = encode_ray(ray, w, C)
    of_hidden = layer_backward(of_x, layer(hidden, w, "ray_out", C), hidden, w, g, "ray_out", C, GROUPS)
    of_hidden *= elu_slope(hidden)
    add_rows(g + place("ray_in_bias", C), SIZE, of_hidden, 1, GROUPS)
    column = tl.arange(0, 16)[None, :]
    inputs = tl.where(column == 2, ray.z[:, None], tl.where(column == 3, ray.depth[:, None], 0.0))
    inputs = tl.where(column == 0, ray.x[:, None], tl.where(column == 1, ray.y[:, None], inputs))
    add_products(g + place("ray_in", C), SIZE, of_hidden, inputs, 16, GROUPS)


@triton.jit
def shown_backward(
    of_shared, views, w, g, of_features, of_codes, shown, of_shown, moments, share, block,
    C: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Last pass: all that comes before the encoder. of_shown lacks the part through the moments of what views show."""
    SIZE: tl.constexpr = place("end", C)
    R: tl.constexpr = block.voxel.shape[0]
    at = place("view_in", C)
    add_rows(g + place("view_in_bias", C), SIZE, of_shared, 1, GROUPS)
    add_products(g + at, SIZE, of_shared, moments.mean, 3 * C, GROUPS)
    add_products(g + at + C, SIZE, of_shared, moments.variance, 3 * C, GROUPS)
    of_mean = linear_backward(of_shared, w + at, 3 * C, C) * share
    of_variance = linear_backward(of_shared, w + at + C, 3 * C, C) * share
    for view in range(views.num_views):
        depth = view_depth(views, block, view)
        if tl.max(depth, 0) > 0:
            off = tl.load(shown + view * R * C) - moments.mean
            of_x = tl.where((depth > 0)[:, None], of_mean + 2 * of_variance * off, 0.0)
            of_x += tl.load(of_shown + view * R * C)
            code = of_codes + (block.sample * views.num_views + view) * C
            add_rows(code, views.num_samples * views.num_views * C, of_x, 1, GROUPS)
            show_backward(of_x, views, w, g, of_features, block, view, depth, C, GROUPS)


@triton.jit
def differentiate_views(of_volume, views, w, g, scratch, of_features, of_codes, C: tl.constexpr, GROUPS: tl.constexpr):
    """For the volume's gradient [B, C, N]: features' [B, V, h, w, C], and sums for each group of rows of each program:
    weights' [programs, GROUPS, all] and codes' [programs, GROUPS, B, V, C]. scratch is [programs, 2, V, R, C].
    """
    R: tl.constexpr = BLOCK
    program = tl.program_id(0)
    g += program * GROUPS * place("end", C)
    of_codes += program * GROUPS * views.num_samples * views.num_views * C
    shown = scratch + program * 2 * views.num_views * R * C
    shown += tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    of_shown = shown + views.num_views * R * C
    for number in range(program, num_blocks(views), tl.num_programs(0)):
        block = block_of(views, number)
        of_block = tl.load(of_volume + volume_at(views, block, C), mask=block.inside[:, None], other=0.0)
        moments = moments_of_shown(views, w, shown, block, C)
        if tl.max(moments.weight, 0) > 0:
            share = 1 / tl.maximum(moments.weight, 1.0)[:, None]
            shared = shared_hidden(moments, w, C)
            of_shared = encoded_backward(of_block, views, w, g, shown, of_shown, shared, share, block, C, GROUPS)
            shown_backward(
                of_shared, views, w, g, of_features, of_codes, shown, of_shown, moments, share, block, C, GROUPS
            )
        else:  # the features are those of a layer without inputs
            bias = place("output_bias", C)
            add_rows(g + bias, place("end", C), of_block * elu_slope(elu(vector(w + bias, C))), 1, GROUPS)
        tl.debug_barrier()  # the next block must not overwrite what other threads still read
