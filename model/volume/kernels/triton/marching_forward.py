"""The ray march's forward kernel: the paper, section 3.2, and model/volume/kernels/marching.py, and
marching_parts.py for shape letters.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

import triton
import triton.language as tl

from model.volume.kernels.triton.marching_parts import (
    density_of,
    network,
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
    volume = batch * grid_size * grid_size * grid_size * CHANNELS
    shown = sample(voxels + volume, x, y, z, inside, grid_size, CHANNELS)
    codes = of_rays(ray_codes + first * CHANNELS, count, CHANNELS, RAYS, POSITIONS, CHANNELS)
    _, hidden, _, color = network(shown, codes, weights, CHANNELS)
    density = density_of(hidden, noise + start, offsets, exists, weights, HAS_NOISE, CHANNELS)

    interval = tl.load(intervals + start + offsets, mask=exists, other=0.0)
    before, after = transmittance(density, interval, RAYS, POSITIONS)
    weight = before - after
    depth = tl.load(depths + start + offsets, mask=exists, other=0.0) * weight
    opacity = tl.sum(tl.reshape(weight, [RAYS, POSITIONS]), axis=1)
    features = tl.sum(tl.reshape(weight[:, None] * color, [RAYS, POSITIONS, CHANNELS]), axis=1)

    ray, channel = tl.arange(0, RAYS), tl.arange(0, CHANNELS)
    row = seen + first * (CHANNELS + 2) + ray * (CHANNELS + 2)
    tl.store(row[:, None] + channel[None, :], features + (1 - opacity)[:, None], mask=(ray < count)[:, None])
    tl.store(row + CHANNELS, opacity, mask=ray < count)
    tl.store(row + CHANNELS + 1, tl.sum(tl.reshape(depth, [RAYS, POSITIONS]), axis=1), mask=ray < count)
