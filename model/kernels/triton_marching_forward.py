"""The ray march's forward kernel: see model/kernels/marching.py, and triton_marching_parts.py for shape letters."""

import triton
import triton.language as tl

from model.kernels.triton_marching_parts import (
    COLOR_IN,
    COLOR_OUT,
    TRUNK_IN,
    TRUNK_OUT,
    density_of,
    linear,
    of_rays,
    place,
    positions_of,
    rays_of,
    sample,
    transmittance,
)


@triton.jit
def march_rays(
    seen,  # [B * num_rays, C + 2], written
    voxels,  # [B, G³, C]
    ray_codes,  # [B * num_rays, C]
    points,  # [B * num_rays, num_positions, 3]
    depths,  # [B * num_rays, num_positions], as intervals and noise
    intervals,
    noise,
    weights,  # packed
    num_rays,
    num_positions,
    grid_size,
    HAS_NOISE: tl.constexpr,
    CHANNELS: tl.constexpr,
    RAYS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Colour, opacity and depth of one tile of rays."""
    batch, first, count = rays_of(tl.program_id(0), num_rays, RAYS)
    start = first * num_positions
    offsets, exists = positions_of(count, num_positions, RAYS, POSITIONS)
    x, y, z, inside = place(points + start * 3, offsets, exists, grid_size)
    voxels += batch * grid_size * grid_size * grid_size * CHANNELS
    hidden = tl.maximum(
        linear(sample(voxels, x, y, z, inside, grid_size, CHANNELS), weights, TRUNK_IN, CHANNELS), 0.0
    )
    hidden = tl.maximum(linear(hidden, weights, TRUNK_OUT, CHANNELS), 0.0)
    density = density_of(hidden, noise + start, offsets, exists, weights, HAS_NOISE, CHANNELS)
    codes = of_rays(ray_codes + first * CHANNELS, count, CHANNELS, RAYS, POSITIONS, CHANNELS)
    color = tl.maximum(linear(hidden, weights, COLOR_IN, CHANNELS) + codes, 0.0)
    color = tl.sigmoid(linear(color, weights, COLOR_OUT, CHANNELS))

    before, after = transmittance(
        density, tl.load(intervals + start + offsets, mask=exists, other=0.0), RAYS, POSITIONS
    )
    weight = before - after
    opacity = tl.sum(tl.reshape(weight, [RAYS, POSITIONS]), axis=1)
    features = tl.sum(tl.reshape(weight[:, None] * color, [RAYS, POSITIONS, CHANNELS]), axis=1) + (1 - opacity)[:, None]
    depth = tl.load(depths + start + offsets, mask=exists, other=0.0) * weight

    ray, channel = tl.arange(0, RAYS), tl.arange(0, CHANNELS)
    seen += first * (CHANNELS + 2)
    rows = ray * (CHANNELS + 2)
    tl.store(seen + rows[:, None] + channel[None, :], features, mask=(ray < count)[:, None])
    tl.store(seen + rows + CHANNELS, opacity, mask=ray < count)
    tl.store(seen + rows + CHANNELS + 1, tl.sum(tl.reshape(depth, [RAYS, POSITIONS]), axis=1), mask=ray < count)
