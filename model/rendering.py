"""From a feature volume to views: march along each pixel's ray (the paper, section 3.2; NeRF's quadrature).

Coordinates are those of model/volume.py. A position on a ray is given by its depth, the camera's z in world units,
since ray directions are those of model/cameras.py, of depth 1.

Shape letters: B samples, V views, C feature channels, R = h × w rays, S positions on a ray, G voxels per side.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cameras import Cameras
from model.volume import SceneFrame, contract

# The background's near and far end: this far in front of and behind the scene's centre, in half scene sizes.
BACKGROUND_REACH = 4.0
# Where a ray that misses the scene's box is sampled; it meets nothing there, but its depths must be ordinary numbers.
MISSED_NEAR_FAR = (0.5, 4.5)
# softplus of this is 0.007: a fresh volume is almost transparent.
INITIAL_DENSITY_BIAS = -5.0


class Rays(NamedTuple):
    """The rays of all pixels, in normalised coordinates: origin + depth · direction."""

    origins: Tensor  # [B, V, 1, 3]
    directions: Tensor  # [B, V, R, 3] per world unit of depth

    @classmethod
    def from_cameras(cls, cameras: Cameras, frame: SceneFrame) -> Rays:
        """The rays through the pixel centres of cameras [B, V], row by row."""
        origins = frame.to_normalized(cameras.centers())
        directions = cameras.ray_directions().flatten(2, 3) / frame.half_size[:, None, None, None]
        return cls(origins[:, :, None], directions)


class Rendered(NamedTuple):
    """What the cameras see of a volume."""

    features: Tensor  # [B, V, C, h, w]; 1 where nothing is hit
    opacity: Tensor  # [B, V, 1, h, w] in [0, 1]
    depth: Tensor  # [B, V, 1, h, w] world units, weighted by opacity: 0 where nothing is hit


def box_near_far(rays: Rays, box: Tensor) -> tuple[Tensor, Tensor]:
    """Depths [B, V, R] at which rays enter and leave a box [B, 2, 3] (normalised coordinates).

    A camera inside the box starts at its own centre. A ray that misses gets `MISSED_NEAR_FAR`.
    """
    # A direction that is exactly parallel to a side gives ±inf, which min and max order rightly.
    low, high = ((corner[:, None, None] - rays.origins) / rays.directions for corner in box.unbind(1))
    near = torch.minimum(low, high).amax(-1).clamp(min=0)
    far = torch.maximum(low, high).amin(-1)
    hit = near < far
    return torch.where(hit, near, MISSED_NEAR_FAR[0]), torch.where(hit, far, MISSED_NEAR_FAR[1])


def background_near_far(rays: Rays) -> tuple[Tensor, Tensor]:
    """Depths [B, V, R] of the near and far end of the part that is sampled evenly when there is a background."""
    distance = rays.origins.norm(dim=-1).expand(rays.directions.shape[:-1])
    return (distance - BACKGROUND_REACH).clamp(min=0), distance + BACKGROUND_REACH


def sample_depths(
    near: Tensor, far: Tensor, *, num_samples: int, disparity_at_infinity: float | None
) -> tuple[Tensor, Tensor]:
    """Positions on each ray and the intervals before them: near and far [B, V, R] -> depths, intervals [B, V, R, S].

    `num_samples` evenly from near to far, both ends included; with a background as many again whose inverse depth falls
    evenly from 1/far to `disparity_at_infinity`/far. The first interval equals the second.
    """
    near, far = near[..., None], far[..., None]
    steps = torch.linspace(0, 1, num_samples, dtype=near.dtype, device=near.device)
    depths = near + (far - near) * steps
    spacing = ((far - near) / (num_samples - 1)).expand(depths.shape)
    if disparity_at_infinity is None:
        return depths, spacing
    steps = torch.arange(1, num_samples + 1, dtype=near.dtype, device=near.device) / num_samples
    behind = far / (1 + (disparity_at_infinity - 1) * steps)
    return torch.cat([depths, behind], -1), torch.cat([spacing, behind.diff(dim=-1, prepend=far)], -1)


def sample_volume(volume: Tensor, grid_points: Tensor) -> Tensor:
    """Trilinear samples of a volume [B, C, G, G, G] at grid coordinates [B, V, R, S, 3] -> [B, V, R, S, C].

    In the points' dtype. Zero where a point's index, 0 at the first voxel's centre, lies outside [0, G): at once before
    the first centre, fading over one voxel behind the last.
    """
    first_center = 1 / volume.shape[-1] - 1
    before = (grid_points < first_center).any(-1, keepdim=True)
    grid_points = torch.where(before, -3.0, grid_points)  # far beyond the volume, where the sampler reads zeros
    samples = F.grid_sample(volume.to(grid_points.dtype), grid_points, align_corners=False)  # [B, C, V, R, S]
    return samples.movedim(1, -1).contiguous()


def composite(density: Tensor, intervals: Tensor) -> Tensor:
    """Weights [..., S] of the positions on a ray: transmittance before minus after each, from densities [..., S]."""
    transmittance = torch.exp(-torch.cumsum(density * intervals, dim=-1))
    return F.pad(transmittance[..., :-1], (1, 0), value=1.0) - transmittance


def opacity_noise(seeds: tuple[int, ...], layer_index: int, *, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Normal noise [B, *shape], float32, each sample's from its own seed and the layer's index.

    So it depends neither on how samples are put into batches nor on a global generator, and computing it again, as
    gradient checkpointing does, gives the same.
    """
    noise = []
    for seed in seeds:
        generator = torch.Generator(device)
        # Mixed well, since torch's CPU generator reads only the lower 32 bits.
        generator.manual_seed(random.Random(f"opacity noise {seed} {layer_index}").getrandbits(63))
        noise.append(torch.randn(shape, generator=generator, dtype=torch.float32, device=device))
    return torch.stack(noise)


class VolumeRenderer(nn.Module):
    """Renders a feature volume by marching along rays.

    `foreground_fraction` is the volume's (None: it has no background), `layer_index` sets the opacity noise of a
    network's layers apart. Its parameters are the ones that train at their own learning rate.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_samples: int,
        foreground_fraction: float | None,
        disparity_at_infinity: float,
        layer_index: int,
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.foreground_fraction = foreground_fraction
        self.disparity_at_infinity = disparity_at_infinity
        self.layer_index = layer_index
        self.trunk = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU())
        self.density = nn.Linear(channels, 1)
        self.color_hidden = nn.Linear(channels, channels)
        self.color_ray = nn.Linear(3, channels)
        self.color = nn.Linear(channels, channels)
        nn.init.constant_(self.density.bias, INITIAL_DENSITY_BIAS)

    def forward(
        self, volume: Tensor, cameras: Cameras, scene_bounds: Tensor, noise_seeds: tuple[int, ...] | None = None
    ) -> Rendered:
        """Volume [B, C, G, G, G] seen by cameras [B, V], at their image size; `scene_bounds` [B, 2, 3].

        Geometry and the sum along a ray are computed in the cameras' dtype, the small networks in their own.
        """
        frame = SceneFrame.from_bounds(scene_bounds)
        rays = Rays.from_cameras(cameras, frame)
        depths, intervals = self._sample_depths(rays, frame.to_normalized(scene_bounds))
        points = rays.origins[..., None, :] + depths[..., None] * rays.directions[..., None, :]
        if self.foreground_fraction is not None:
            points = contract(points, self.foreground_fraction)
        world_directions = rays.directions * frame.half_size[:, None, None, None]
        density, color = self._density_and_color(sample_volume(volume, points), world_directions, noise_seeds)
        weights = composite(density.to(depths.dtype), intervals)
        opacity = weights.sum(-1, keepdim=True)
        features = (weights[..., None, :] @ color.to(depths.dtype))[..., 0, :] + (1 - opacity)
        depth = (weights * depths).sum(-1, keepdim=True)
        return Rendered(*(x.mT.unflatten(-1, cameras.image_size) for x in (features, opacity, depth)))

    def _sample_depths(self, rays: Rays, box: Tensor) -> tuple[Tensor, Tensor]:
        """Depths and intervals [B, V, R, S], or 2S with a background."""
        if self.foreground_fraction is None:
            near, far = box_near_far(rays, box)
            return sample_depths(near, far, num_samples=self.num_samples, disparity_at_infinity=None)
        near, far = background_near_far(rays)
        disparity = self.disparity_at_infinity
        return sample_depths(near, far, num_samples=self.num_samples, disparity_at_infinity=disparity)

    def _density_and_color(
        self, features: Tensor, directions: Tensor, noise_seeds: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """Density [B, V, R, S] and colour [B, V, R, S, C] of features [B, V, R, S, C] seen along [B, V, R, 3]."""
        dtype = self.density.weight.dtype
        hidden = self.trunk(features.to(dtype))
        density = self.density(hidden)[..., 0]
        if noise_seeds is not None:
            noise = opacity_noise(noise_seeds, self.layer_index, shape=density.shape[1:], device=density.device)
            density = density + noise.to(dtype)
        seen_along = self.color_ray(directions.to(dtype))[..., None, :]
        color = self.color(F.relu(self.color_hidden(hidden) + seen_along)).sigmoid()
        return F.softplus(density), color
