"""From a feature volume to views: march along each pixel's ray (the paper, section 3.2; NeRF's quadrature).

Coordinates are those of model/volume/filling.py. A position on a ray is given by its depth, the camera's z in world
units, since ray directions are those of model/cameras.py, of depth 1.

Shape letters: B samples, V views, C feature channels, R = h × w rays, S positions on a ray, G voxels per side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cameras import Cameras
from model.config import ProjectionConfig
from model.volume.kernels.inputs import MarchWeights
from model.volume.kernels.marching import march
from model.volume.kernels.selection import version_for
from model.volume.space import SceneFrame, contract

# The background's near and far end: this far in front of and behind the scene's centre, in half scene sizes.
BACKGROUND_REACH = 4.0
# Where a ray that misses the scene's box is sampled, in half scene sizes: its depths must be ordinary numbers.
MISSED_NEAR_FAR = (0.5, 4.5)
# softplus of this is 0.007: a fresh volume is almost transparent.
INITIAL_DENSITY_BIAS = -5.0
# SplitMix64's step from one number to the next, as a signed 64-bit number.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64


class Rays(NamedTuple):
    """The rays of all pixels, in normalised coordinates: origin + depth · direction."""

    origins: Tensor  # [B, V, 1, 3]
    directions: Tensor  # [B, V, R, 3] per world unit of depth

    @classmethod
    def from_cameras(cls, cameras: Cameras, frame: SceneFrame, *image_sizes: tuple[int, int]) -> Rays:
        """The rays through the pixel centres of cameras [B, V] at these image sizes, row by row, size by size."""
        origins = frame.to_normalized(cameras.centers())
        directions = cameras.ray_directions_at(*image_sizes) / frame.half_size[:, None, None, None]
        return cls(origins[:, :, None], directions)


class RaySamples(NamedTuple):
    """The positions on the rays of all pixels. Depends on cameras and scene only; nothing here is differentiated."""

    points: Tensor  # [B, V, R, S, 3] grid coordinates (x, y, z)
    depths: Tensor  # [B, V, R, S] world units
    intervals: Tensor  # [B, V, R, S] world units: depth minus that of the position before
    directions: Tensor  # [B, V, R, 3] world, of depth 1


class Rendered(NamedTuple):
    """What the cameras see of a volume."""

    features: Tensor  # [B, V, C, h, w]; 1 where nothing is hit
    opacity: Tensor  # [B, V, 1, h, w] in [0, 1]
    depth: Tensor  # [B, V, 1, h, w] world units, weighted by opacity: 0 where nothing is hit


def box_near_far(rays: Rays, box: Tensor, half_size: Tensor) -> tuple[Tensor, Tensor]:
    """Depths [B, V, R] at which rays enter and leave a box [B, 2, 3] (normalised coordinates).

    A camera inside the box starts at its own centre. A ray that misses gets `MISSED_NEAR_FAR`, times half_size [B] of
    the scene.
    """
    # A direction that is exactly parallel to a side gives ±inf, which min and max order rightly.
    low, high = ((corner[:, None, None] - rays.origins) / rays.directions for corner in box.unbind(1))
    near = torch.minimum(low, high).amax(-1).clamp(min=0)
    far = torch.maximum(low, high).amin(-1)
    hit = near < far
    missed_near, missed_far = (depth * half_size[:, None, None] for depth in MISSED_NEAR_FAR)
    return torch.where(hit, near, missed_near), torch.where(hit, far, missed_far)


def background_near_far(rays: Rays, half_size: Tensor) -> tuple[Tensor, Tensor]:
    """Depths [B, V, R] of the near and far end of the part that is sampled evenly when there is a background.

    half_size [B] of the scene, which is 1 in the normalised world, makes them world units in any other.
    """
    distance = rays.origins.norm(dim=-1).expand(rays.directions.shape[:-1])
    near, far = (distance - BACKGROUND_REACH).clamp(min=0), distance + BACKGROUND_REACH
    return near * half_size[:, None, None], far * half_size[:, None, None]


def sample_depths(
    near: Tensor, far: Tensor, *, num_samples: int, disparity_at_infinity: float | None
) -> tuple[Tensor, Tensor]:
    """Positions on each ray and the intervals before them: near and far [B, V, R] -> depths, intervals [B, V, R, S].

    `num_samples` evenly from near to far, both ends included; with a background as many again whose inverse depth falls
    evenly from 1/far to `disparity_at_infinity`/far. The first interval equals the second.
    """
    near, far = near[..., None], far[..., None]
    steps = torch.linspace(0, 1, num_samples, dtype=near.dtype, device=near.device)
    length = far - near
    depths = near + length * steps
    spacing = (length / (num_samples - 1)).expand(depths.shape)
    if disparity_at_infinity is None:
        return depths, spacing
    step = (1 - disparity_at_infinity) / num_samples
    disparities = torch.linspace(1 - step, disparity_at_infinity, num_samples, dtype=near.dtype, device=near.device)
    behind = far / disparities
    return torch.cat([depths, behind], -1), torch.cat([spacing, behind.diff(dim=-1, prepend=far)], -1)


def sample_volume(volume: Tensor, grid_points: Tensor) -> Tensor:
    """Trilinear samples of a volume [B, C, G, G, G] at grid coordinates [B, V, R, S, 3] -> [B, V, R, S, C].

    Part of the plain version; the tiled one samples by `trilinear_corners` of model/volume/kernels/marching.py,
    Triton's by `place` and `sample` of kernels/triton/marching_parts.py. In the points' dtype. Zero where a point's
    index, 0 at the first voxel's centre, lies outside [0, G): at once before the first centre, fading over one voxel
    behind the last.
    """
    first_center = 1 / volume.shape[-1] - 1
    before = (grid_points < first_center).any(-1, keepdim=True)
    grid_points = torch.where(before, -3.0, grid_points)  # far beyond the volume, where the sampler reads zeros
    samples = F.grid_sample(volume.to(grid_points.dtype), grid_points, align_corners=False)  # [B, C, V, R, S]
    return samples.movedim(1, -1).contiguous()


def composite(density: Tensor, intervals: Tensor) -> Tensor:
    """Weights [..., S] of the positions on a ray: transmittance before minus after each, from densities [..., S].

    Part of the plain version; the fast ones do so in `march` of model/volume/kernels/marching.py and of
    kernels/triton/marching.py.
    """
    transmittance = torch.exp(-torch.cumsum(density * intervals, dim=-1))
    return F.pad(transmittance[..., :-1], (1, 0), value=1.0) - transmittance


def opacity_noise(seeds: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Normal noise for several layers, float32 [B, size] each; every sample's from its own seed, int64 [B].

    It is SplitMix64 (Steele et al. 2014), started at the seed, through the inverse of the normal distribution: so it
    depends neither on how samples are put into batches nor on a generator's state, and nothing waits for the device.
    """
    bits = _mix(torch.arange(sum(sizes), device=seeds.device) * GOLDEN_GAMMA + seeds[:, None])
    # The upper 24 bits with their sign, as many as float32 holds exactly: uniform in (-1, 1).
    uniform = ((bits >> 40).float() + 0.5) / 2**23
    return list((math.sqrt(2) * torch.erfinv(uniform)).split(list(sizes), dim=1))


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64 numbers, whose products wrap around."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        bits = (bits ^ ((bits >> shift) & (2 ** (64 - shift) - 1))) * factor
    return bits ^ ((bits >> 31) & (2**33 - 1))


def sample_rays(
    cameras: Cameras, scene_bounds: Tensor, config: ProjectionConfig, *image_sizes: tuple[int, int]
) -> list[RaySamples]:
    """Positions on the rays of cameras [B, V] at each of the image sizes; scene_bounds [B, 2, 3]."""
    frame = SceneFrame.from_bounds(scene_bounds)
    rays = Rays.from_cameras(cameras, frame, *image_sizes)
    if config.background:
        near, far = background_near_far(rays, frame.half_size)
        disparity = config.disparity_at_infinity
    else:
        near, far = box_near_far(rays, frame.to_normalized(scene_bounds), frame.half_size)
        disparity = None
    depths, intervals = sample_depths(near, far, num_samples=config.num_samples, disparity_at_infinity=disparity)
    points = rays.origins[..., None, :] + depths[..., None] * rays.directions[..., None, :]
    if config.background:
        points = contract(points, config.foreground_fraction)
    directions = rays.directions * frame.half_size[:, None, None, None]
    counts = [math.prod(size) for size in image_sizes]
    parts = zip(*(x.split(counts, dim=2) for x in (points, depths, intervals, directions)), strict=True)
    samples = [RaySamples(*part) for part in parts]
    # Directions contiguous once here: every layer's linear map of them would copy them otherwise.
    return [part._replace(directions=part.directions.contiguous()) for part in samples]


class VolumeRenderer(nn.Module):
    """Renders a feature volume by marching along rays. Its parameters train at their own learning rate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU())
        self.density = nn.Linear(channels, 1)
        self.color_hidden = nn.Linear(channels, channels)
        self.color_ray = nn.Linear(3, channels)
        self.color = nn.Linear(channels, channels)
        nn.init.constant_(self.density.bias, INITIAL_DENSITY_BIAS)

    def forward(
        self, volume: Tensor, rays: RaySamples, image_size: tuple[int, int], noise: Tensor | None = None
    ) -> Rendered:
        """Volume [B, C, G, G, G] seen along the rays of views of (height, width) pixels, in the samples' dtype.

        `noise` [B, V, R, S] is added to the density's input.
        """
        dtype = rays.depths.dtype
        codes = F.linear(rays.directions, self.color_ray.weight.to(dtype), self.color_ray.bias.to(dtype))
        if version_for(codes) == "plain":
            seen = self.march(volume.to(dtype), codes, rays, noise)
        else:
            weights = [weight.to(dtype) for weight in self.weights()]
            seen = march(volume.to(dtype), codes, rays.points, rays.depths, rays.intervals, noise, weights)
        seen = seen.mT.unflatten(-1, image_size)
        return Rendered(*seen.split([seen.shape[2] - 2, 1, 1], dim=2))

    def weights(self) -> MarchWeights:
        """The parameters that the fast versions take."""
        layers = (self.trunk, self.density, self.color_hidden, self.color)
        return MarchWeights(*(parameter for layer in layers for parameter in layer.parameters()))

    def march(self, volume: Tensor, codes: Tensor, rays: RaySamples, noise: Tensor | None) -> Tensor:
        """Colour, opacity and depth [B, V, R, C + 2]; codes [B, V, R, C] of the rays: the plain version, in whose place
        one of model/volume/kernels/ runs, see selection.py there.
        """
        hidden = self.trunk(sample_volume(volume, rays.points))
        density = self.density(hidden)[..., 0]
        if noise is not None:
            density = density + noise
        color = self.color(F.relu(self.color_hidden(hidden) + codes[..., None, :])).sigmoid()
        weights = composite(F.softplus(density), rays.intervals)
        opacity = weights.sum(-1, keepdim=True)
        features = (weights[..., None, :] @ color)[..., 0, :] + (1 - opacity)
        return torch.cat([features, opacity, (weights * rays.depths).sum(-1, keepdim=True)], dim=-1)
