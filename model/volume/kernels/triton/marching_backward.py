"""The ray march's backward kernel: the paper, section 3.2, and model/volume/kernels/marching.py, and
marching_parts.py for shape letters.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

import triton
import triton.language as tl

from model.volume.kernels.triton.marching_parts import (
    COLOR_IN,
    COLOR_OUT,
    PRECISION,
    TRUNK_IN,
    TRUNK_OUT,
    bias,
    corner,
    density_of,
    density_row,
    matrix,
    network,
    of_rays,
    place,
    positions_of,
    rays_of,
    sample,
    sums_along,
    transmittance,
)

# Positions whose products become one part of a matrix's gradient; a thread keeps that many values of each factor.
ROWS = tl.constexpr(32)


@triton.jit
def differentiate_rays(
    gradient,  # [B * num_rays, C + 2]
    voxels,  # [B, G³, C]
    ray_codes,  # [B * num_rays, C]
    points,  # [B * num_rays, num_positions, 3]
    depths,  # [B * num_rays, num_positions], as intervals and noise
    intervals,
    noise,
    weights,  # packed
    of_voxels,  # [B, G³, C], added to
    of_codes,  # [B * num_rays, C], written
    of_weights,  # [programs, weights], added to
    num_rays,
    num_positions,
    grid_size,
    num_tiles,
    num_weights,
    HAS_NOISE: tl.constexpr,
    CHANNELS: tl.constexpr,
    RAYS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Gradients of every so many-th tile of rays, whose forward pass is computed again.

    A program adds to a row of weights' gradients that is its own, so their sums have always the same order.
    """
    of_weights += tl.program_id(0) * num_weights
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        batch, first, count = rays_of(tile, num_rays, RAYS)
        start = first * num_positions
        offsets, exists = positions_of(count, num_positions, RAYS, POSITIONS)
        x, y, z, inside = place(points + start * 3, offsets, exists, grid_size)
        volume = batch * grid_size * grid_size * grid_size * CHANNELS
        shown = sample(voxels + volume, x, y, z, inside, grid_size, CHANNELS)
        codes = of_rays(ray_codes + first * CHANNELS, count, CHANNELS, RAYS, POSITIONS, CHANNELS)
        trunk, hidden, tint, color = network(shown, codes, weights, CHANNELS)
        density = density_of(hidden, noise + start, offsets, exists, weights, HAS_NOISE, CHANNELS)

        depth = tl.load(depths + start + offsets, mask=exists, other=0.0)
        interval = tl.load(intervals + start + offsets, mask=exists, other=0.0)
        of_seen = gradient + first * (CHANNELS + 2)
        of_color, of_density = differentiate_composite(
            of_seen, color, density, depth, interval, count, RAYS, POSITIONS, CHANNELS
        )
        of_tint = differentiate_linear(of_color, tint, weights, of_weights, COLOR_OUT, CHANNELS)
        of_tint = tl.where(tint > 0, of_tint, 0.0)
        store_sums(of_codes + first * CHANNELS, of_tint, count, RAYS, POSITIONS, CHANNELS)
        of_hidden = differentiate_linear(of_tint, hidden, weights, of_weights, COLOR_IN, CHANNELS)
        of_hidden += differentiate_density(of_density, hidden, weights, of_weights, CHANNELS)
        of_hidden = tl.where(hidden > 0, of_hidden, 0.0)
        of_trunk = differentiate_linear(of_hidden, trunk, weights, of_weights, TRUNK_OUT, CHANNELS)
        of_trunk = tl.where(trunk > 0, of_trunk, 0.0)
        of_shown = differentiate_linear(of_trunk, shown, weights, of_weights, TRUNK_IN, CHANNELS)
        # Loaded again, so that they take no registers in between.
        x, y, z, inside = place(points + start * 3, offsets, exists, grid_size)
        scatter(of_voxels + volume, of_shown, x, y, z, inside, grid_size, CHANNELS)


@triton.jit
def differentiate_composite(
    gradient,  # [Q, C + 2], of what the rays see
    color,  # [P, C]
    density,  # [P], as depth and interval
    depth,
    interval,
    count,
    RAYS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of the inputs [P, C] of colours' sigmoid and [P] of densities' softplus.

    With thicknesses t, transmittances T[i] = exp(-t[0] - ... - t[i]) and weights w[i] = T[i - 1] - T[i], gradients g of
    the weights make that of t[i]: g[i] T[i] minus the sum of g[j] w[j] over j > i.
    """
    before, after = transmittance(density, interval, RAYS, POSITIONS)
    weight = before - after
    of_features = of_rays(gradient, count, CHANNELS + 2, RAYS, POSITIONS, CHANNELS)
    ray = tl.arange(0, RAYS * POSITIONS) // POSITIONS
    of_opacity = gradient + ray * (CHANNELS + 2) + CHANNELS
    of_weight = tl.sum(of_features * (color - 1), axis=1)
    of_weight += tl.load(of_opacity, mask=ray < count, other=0.0)
    of_weight += tl.load(of_opacity + 1, mask=ray < count, other=0.0) * depth
    behind, _ = sums_along(tl.reshape(of_weight * weight, [RAYS, POSITIONS]), True)
    of_thickness = of_weight * after - tl.reshape(behind, [RAYS * POSITIONS])
    return weight[:, None] * of_features * color * (1 - color), of_thickness * interval * tl.sigmoid(density)


@triton.jit
def differentiate_linear(gradient, values, weights, of_weights, LAYER: tl.constexpr, CHANNELS: tl.constexpr):
    """Adds the gradients of a layer's matrix and bias; returns that of its inputs `values` [P, C]."""
    parts: tl.constexpr = gradient.shape[0] // ROWS
    transposed = tl.trans(tl.reshape(gradient, [parts, ROWS, CHANNELS]), 0, 2, 1)
    products = tl.dot(transposed, tl.reshape(values, [parts, ROWS, CHANNELS]), input_precision=PRECISION)
    tl.atomic_add(matrix(of_weights, LAYER, CHANNELS), tl.sum(products, axis=0), sem="relaxed")
    tl.atomic_add(bias(of_weights, LAYER, CHANNELS), tl.sum(gradient, axis=0), sem="relaxed")
    return tl.dot(gradient, tl.load(matrix(weights, LAYER, CHANNELS)), input_precision=PRECISION)


@triton.jit
def differentiate_density(gradient, values, weights, of_weights, CHANNELS: tl.constexpr):
    """`differentiate_linear` for the layer of one output, whose gradient is [P]."""
    of_row, of_bias = density_row(of_weights, CHANNELS)
    tl.atomic_add(of_row, tl.sum(gradient[:, None] * values, axis=0), sem="relaxed")
    tl.atomic_add(of_bias, tl.sum(gradient, axis=0), sem="relaxed")
    row, _ = density_row(weights, CHANNELS)
    return gradient[:, None] * tl.load(row)[None, :]


@triton.jit
def store_sums(rows, values, count, RAYS: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums of values [P, C] over each ray, to rows [Q, C]."""
    ray, channel = tl.arange(0, RAYS), tl.arange(0, CHANNELS)
    sums = tl.sum(tl.reshape(values, [RAYS, POSITIONS, CHANNELS]), axis=1)
    tl.store(rows + ray[:, None] * CHANNELS + channel[None, :], sums, mask=(ray < count)[:, None])


@triton.jit
def scatter(of_voxels, gradient, x, y, z, inside, grid_size, CHANNELS: tl.constexpr):
    """Adds a gradient of samples [P, C] to that of the voxels [G³, C] around them: `sample` backwards."""
    channel = tl.arange(0, CHANNELS)
    for number in tl.static_range(8):
        voxel, share = corner(x, y, z, inside, grid_size, number)
        pointers = of_voxels + voxel[:, None] * CHANNELS + channel[None, :]
        tl.atomic_add(pointers, share[:, None] * gradient, mask=(share > 0)[:, None], sem="relaxed")
