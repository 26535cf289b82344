"""What the forward and the backward kernel of the ray march share: the paper, section 3.2, and
model/volume/kernels/marching.py.

A tile is all positions of one or of several whole rays, side by side.

Shape letters: C channels, G voxels per side, S positions on a ray up to the next power of two; Q rays of a tile,
P = Q*S positions.
"""

# A kernel's arguments have the types that it is compiled for.
# mypy: allow-untyped-defs

import triton
import triton.language as tl

# Rounding the factors to TF32 would cost more than the 1e-5 that all versions agree to.
PRECISION = tl.constexpr("ieee")

# Layers from C to C channels. The weights are packed in the order of `MarchWeights`; the density lies in the middle.
TRUNK_IN = tl.constexpr(0)
TRUNK_OUT = tl.constexpr(1)
COLOR_IN = tl.constexpr(2)
COLOR_OUT = tl.constexpr(3)


@triton.jit
def rays_of(tile, num_rays, RAYS: tl.constexpr):
    """A tile's sample, its first ray of all samples' rays, and the number of its rays; no tile has two samples."""
    tiles = tl.cdiv(num_rays, RAYS)
    sample = tile // tiles
    start = tile % tiles * RAYS
    first = (sample * num_rays + start).to(tl.int64)
    return sample.to(tl.int64), first, tl.minimum(num_rays - start, RAYS)


@triton.jit
def positions_of(count, num_positions, RAYS: tl.constexpr, POSITIONS: tl.constexpr):
    """Offsets [P] of positions from the first one of a tile of `count` rays, and which exist."""
    number = tl.arange(0, RAYS * POSITIONS)
    ray, position = number // POSITIONS, number % POSITIONS
    return ray * num_positions + position, (ray < count) & (position < num_positions)


@triton.jit
def indices(points, offsets, exists, grid_size, AXIS: tl.constexpr):
    """Continuous index [P] of positions along an axis, 0 at the first voxel's centre."""
    point = tl.load(points + offsets * 3 + AXIS, mask=exists, other=-3.0)  # far outside of the volume
    return (point + 1) * (grid_size * 0.5) - 0.5


@triton.jit
def place(points, offsets, exists, grid_size):
    """Continuous indices x, y, z [P] of positions, and whether none lies before the first voxel's centre."""
    x = indices(points, offsets, exists, grid_size, 0)
    y = indices(points, offsets, exists, grid_size, 1)
    z = indices(points, offsets, exists, grid_size, 2)
    return x, y, z, (x >= 0) & (y >= 0) & (z >= 0)


@triton.jit
def corner(x, y, z, inside, grid_size, CORNER: tl.constexpr):
    """Voxel [P] and trilinear weight [P] of one of the 8 corners, 0 outside: as the plain `sample_volume`."""
    column = tl.floor(x) + CORNER % 2
    row = tl.floor(y) + CORNER // 2 % 2
    layer = tl.floor(z) + CORNER // 4
    share = (1 - tl.abs(x - column)) * (1 - tl.abs(y - row)) * (1 - tl.abs(z - layer))
    exists = inside & (column < grid_size) & (row < grid_size) & (layer < grid_size)
    voxel = (layer.to(tl.int32) * grid_size + row.to(tl.int32)) * grid_size + column.to(tl.int32)
    return voxel, tl.where(exists, share, 0.0)


@triton.jit
def sample(voxels, x, y, z, inside, grid_size, CHANNELS: tl.constexpr):
    """Voxels [G³, C] at positions -> [P, C]. A corner's channels lie side by side."""
    channel = tl.arange(0, CHANNELS)
    shown = tl.zeros([x.shape[0], CHANNELS], tl.float32)
    for number in tl.static_range(8):
        voxel, share = corner(x, y, z, inside, grid_size, number)
        pointers = voxels + voxel[:, None] * CHANNELS + channel[None, :]
        shown += share[:, None] * tl.load(pointers, mask=(share > 0)[:, None], other=0.0)
    return shown


@triton.jit
def matrix(weights, LAYER: tl.constexpr, CHANNELS: tl.constexpr):
    """Pointers [C, C] to a layer's matrix; output channels are the rows. Behind it follows the bias."""
    start = (LAYER * CHANNELS + (LAYER > TRUNK_OUT)) * (CHANNELS + 1)
    channel = tl.arange(0, CHANNELS)
    return weights + start + channel[:, None] * CHANNELS + channel[None, :]


@triton.jit
def bias(weights, LAYER: tl.constexpr, CHANNELS: tl.constexpr):
    """Pointers [C] to a layer's bias."""
    start = (LAYER * CHANNELS + (LAYER > TRUNK_OUT)) * (CHANNELS + 1)
    return weights + start + CHANNELS * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def density_row(weights, CHANNELS: tl.constexpr):
    """Pointers [C] to the matrix of one row that makes densities, and one to its bias."""
    start = 2 * CHANNELS * (CHANNELS + 1)
    return weights + start + tl.arange(0, CHANNELS), weights + start + CHANNELS


@triton.jit
def linear(values, weights, LAYER: tl.constexpr, CHANNELS: tl.constexpr):
    """A layer's outputs [P, C] for inputs [P, C]."""
    transposed = tl.trans(tl.load(matrix(weights, LAYER, CHANNELS)))
    product = tl.dot(values, transposed, input_precision=PRECISION)
    return product + tl.load(bias(weights, LAYER, CHANNELS))[None, :]


@triton.jit
def network(shown, codes, weights, CHANNELS: tl.constexpr):
    """Activations of all layers, from what the volume shows [P, C]: of the trunk's two and the colour's two, [P, C]."""
    trunk = tl.maximum(linear(shown, weights, TRUNK_IN, CHANNELS), 0.0)
    hidden = tl.maximum(linear(trunk, weights, TRUNK_OUT, CHANNELS), 0.0)
    tint = tl.maximum(linear(hidden, weights, COLOR_IN, CHANNELS) + codes, 0.0)
    return trunk, hidden, tint, tl.sigmoid(linear(tint, weights, COLOR_OUT, CHANNELS))


@triton.jit
def density_of(hidden, noise, offsets, exists, weights, HAS_NOISE: tl.constexpr, CHANNELS: tl.constexpr):
    """The density's input to softplus [P], for the trunk's outputs [P, C]."""
    row, row_bias = density_row(weights, CHANNELS)
    density = tl.sum(hidden * tl.load(row)[None, :], axis=1) + tl.load(row_bias)
    if HAS_NOISE:
        density += tl.load(noise + offsets, mask=exists, other=0.0)
    return density


@triton.jit
def of_rays(table, count, stride, RAYS: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """Rows of a table [Q, stride], those of the positions' rays: [P, C], or [1, C] if there is one ray."""
    channel = tl.arange(0, CHANNELS)
    if RAYS == 1:
        return tl.load(table + channel)[None, :]
    else:
        ray = tl.arange(0, RAYS * POSITIONS) // POSITIONS
        return tl.load(table + ray[:, None] * stride + channel[None, :], mask=(ray < count)[:, None], other=0.0)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), also precise where it is small: 1 + exp rounds, which the quotient undoes (Kahan)."""
    power = tl.exp(-tl.abs(x))
    rounded = 1 + power
    exact = rounded == 1
    logarithm = tl.where(exact, power, tl.log(rounded) * (power / tl.where(exact, 1.0, rounded - 1)))
    return tl.maximum(x, 0.0) + logarithm


@triton.jit
def transmittance(density, intervals, RAYS: tl.constexpr, POSITIONS: tl.constexpr):
    """The part of light that comes to the front and to the end of each position's interval: [P], [P].

    NeRF's quadrature (Mildenhall et al. 2020, equation 3): a sum along the ray in front of an exponential function,
    and so no loop.
    """
    thickness = tl.reshape(softplus(density) * intervals, [RAYS, POSITIONS])
    before, total = sums_along(thickness, False)
    return tl.reshape(tl.exp(-before), [RAYS * POSITIONS]), tl.reshape(tl.exp(-total), [RAYS * POSITIONS])


@triton.jit
def sums_along(values, reverse: tl.constexpr):
    """Sums of values [Q, S] along each ray: up to each position without it, and with it.

    Taking a position's own value away from the sum with it would leave the rounding error of the larger one.
    """
    return tl.associative_scan((tl.zeros_like(values), values), 1, _join_sums, reverse=reverse)


@triton.jit
def _join_sums(without, total, next_without, next_total):
    """Of two stretches, one behind the other: the sum without the last value, and the whole one."""
    return total + next_without, total + next_total
