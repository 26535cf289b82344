"""From views to one feature volume: voxel centres, contraction, unprojection, aggregation (the paper, section 3.2).

A volume is a cube of G voxels a side around the scene. It is always stored [.., z, y, x]; a list of voxels runs in the
same order, x fastest. Grid coordinates of a point are its (x, y, z) in the cube, [-1, 1] on each axis; normalised
coordinates are world coordinates after moving the scene's centre to the origin and dividing by half of the scene's
largest side. Without a background the two are the same.

With a background the middle part of the cube, `foreground_fraction` p of each axis, holds the scene, and the rest holds
all of space around it, contracted as in MERF (Reiser et al. 2023, section 3.1) for p = 1/2.

Shape letters: B samples, V views, C feature channels, h × w pixels, N = G³ voxels, D channels of the timestep
embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cameras import Cameras, pixel_centers
from model.kernels.aggregation import WEIGHT_EPSILON, AggregationWeights, unproject_aggregate
from model.kernels.selection import version_for


class SceneFrame(NamedTuple):
    """Where normalised coordinates sit in the world: point = center + half_size · normalised."""

    center: Tensor  # [B, 3] world units
    half_size: Tensor  # [B] half of the largest side, world units

    @classmethod
    def from_bounds(cls, scene_bounds: Tensor) -> SceneFrame:
        """The frame of scene bounds [B, 2, 3] (minimum and maximum corner)."""
        low, high = scene_bounds.unbind(-2)
        return cls((low + high) / 2, (high - low).amax(-1) / 2)

    def to_world(self, points: Tensor) -> Tensor:
        """Normalised points [N, 3] -> world points [B, N, 3]."""
        return self.center[:, None] + self.half_size[:, None, None] * points

    def to_normalized(self, points: Tensor) -> Tensor:
        """World points [B, N, 3] -> normalised points [B, N, 3]."""
        return (points - self.center[:, None]) / self.half_size[:, None, None]


class VoxelGrid(NamedTuple):
    """The voxel centres of a cube, in the order of its storage."""

    points: Tensor  # [N, 3] normalised coordinates (x, y, z)
    reachable: Tensor  # [N] bool: whether any point of space contracts into the voxel's surroundings


class VoxelProjections(NamedTuple):
    """Where each view shows the voxels of a grid. Depends on cameras and scene only; nothing here is differentiated."""

    pixels: Tensor  # [B, V, N, 2] in pixels of the cameras' image size
    depth: Tensor  # [B, V, N] world units; 0 where the voxel is outside of the image or behind the camera
    reachable: Tensor  # [N] bool, see VoxelGrid
    ray_matrices: Tensor  # [B, V, 3, 3] from homogeneous pixels to ray directions, of depth 1

    def resize(self, image_size: tuple[int, int]) -> VoxelProjections:
        """The same for images of (height, width) pixels, if these were 1 × 1."""
        height, width = image_size
        # Filled on the device: a tensor made of numbers would make the host wait for its copy.
        size = self.pixels.new_ones(3)
        size[0], size[1] = width, height
        return self._replace(pixels=self.pixels * size[:2], ray_matrices=self.ray_matrices / size)

    def map_views(self, change: Callable[[Tensor], Tensor]) -> VoxelProjections:
        """The same for other views, which `change` makes of each tensor [B, V, ...]."""
        pixels, depth, reachable, ray_matrices = self
        return VoxelProjections(change(pixels), change(depth), reachable, change(ray_matrices))


class ViewSamples(NamedTuple):
    """What each view shows at each voxel. Entries of views that do not see the voxel are zero."""

    features: Tensor  # [B, V, N, C]
    rays: Tensor  # [B, V, N, 3] ray directions, of depth 1
    depth: Tensor  # [B, V, N] world units
    valid: Tensor  # [B, V, N] bool: inside the image and in front of the camera


def voxel_grid(grid_size: int, foreground_fraction: float | None, device: torch.device) -> VoxelGrid:
    """The grid of `grid_size` voxels a side, with a background if `foreground_fraction` (0 < p < 1) is given.

    In float32; callers cast it.
    """
    points = _on_three_axes(voxel_centers(grid_size).to(device, non_blocking=True))
    if foreground_fraction is None:
        return VoxelGrid(points, torch.ones_like(points[:, 0], dtype=torch.bool))
    outside = _on_three_axes(outside_scene(grid_size, foreground_fraction).to(device, non_blocking=True))
    return VoxelGrid(uncontract(points, foreground_fraction), outside.sum(-1) < 2)


# Whether two coordinates are equal, and so where `uncontract` puts a corner's voxel, hangs on the last bit of the two:
# it must be the same on every device. On a GPU, and in what the compiler makes of it, a division by a number becomes a
# multiplication by its inverse, which rounds differently.
@torch.compiler.assume_constant_result
def voxel_centers(grid_size: int) -> Tensor:
    """Grid coordinates [G] of the voxels along an axis, in (-1, 1): float32 on the CPU."""
    return (torch.arange(grid_size, dtype=torch.float32, device="cpu") + 0.5) / grid_size * 2 - 1


@torch.compiler.assume_constant_result
def outside_scene(grid_size: int, foreground_fraction: float) -> Tensor:
    """Whether the voxels along an axis have their centre outside the part that holds the scene: bool [G] on the CPU.

    In whole numbers, so that a centre on the border, where |2i + 1 - G| = p·G, never counts as outside.
    """
    distances = (abs(2 * i + 1 - grid_size) for i in range(grid_size))  # from the middle, in half voxels
    return torch.tensor([distance > foreground_fraction * grid_size for distance in distances], device="cpu")


def _on_three_axes(values: Tensor) -> Tensor:
    """Values [G] along an axis -> those of all voxels on the axes x, y, z: [N, 3] in the order of storage."""
    z, y, x = torch.meshgrid(values, values, values, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def contract(points: Tensor, foreground_fraction: float) -> Tensor:
    """Normalised points [..., 3], anywhere in space, -> grid coordinates in (-1, 1).

    Points of the scene's cube are scaled by p. For others the largest coordinate's magnitude n0 > 1 becomes
    n = 1/p - (1/p - 1)/n0 and the other two are divided by n0, before scaling by p.
    """
    largest, axis = points.abs().max(dim=-1, keepdim=True)
    outer = 1 / foreground_fraction
    # One axis only, even where two coordinates tie: otherwise the point would fall into an unreachable corner.
    is_largest = torch.arange(3, device=points.device) == axis
    radius = largest.clamp(min=1)
    scaled = torch.where(is_largest & (largest > 1), points.sign() * (outer - (outer - 1) / radius), points / radius)
    return scaled * foreground_fraction


def uncontract(grid_points: Tensor, foreground_fraction: float) -> Tensor:
    """Inverse of `contract`: grid coordinates [..., 3] in (-1, 1) -> normalised points.

    Defined for every cell of the grid, but where more than one axis lies outside the scene's part, no point of space
    is contracted to it. Of such cells alone, some with coordinates of equal magnitude are put elsewhere than whole
    numbers would (42 at G = 10): their float32 coordinates differ in the last bit, here and in the golden files.
    """
    magnitude = grid_points.abs()
    is_largest = magnitude == magnitude.amax(dim=-1, keepdim=True)
    scaled = grid_points / foreground_fraction
    largest = scaled.abs().amax(dim=-1, keepdim=True)
    outer = 1 / foreground_fraction
    radius = (outer - 1) / (outer - largest).clamp(min=torch.finfo(scaled.dtype).tiny)
    outside = torch.where(is_largest, scaled.sign() * radius, scaled * radius)
    return torch.where(largest <= 1, scaled, outside)


def project_voxels(
    cameras: Cameras, scene_bounds: Tensor, *, grid_size: int, foreground_fraction: float | None
) -> VoxelProjections:
    """Where cameras [B, V] see the voxels around scene_bounds [B, 2, 3], as in images of 1 × 1 pixels."""
    grid = voxel_grid(grid_size, foreground_fraction, scene_bounds.device)
    points = SceneFrame.from_bounds(scene_bounds).to_world(grid.points.to(scene_bounds.dtype))
    of_unit_image = cameras.resize((1, 1))
    pixels, depth = of_unit_image.project(points[:, None])  # [B, V, N, 2], [B, V, N]
    inside = ((pixels >= 0) & (pixels <= 1)).all(-1)
    return VoxelProjections(pixels, depth * (inside & (depth > 0)), grid.reachable, of_unit_image.ray_matrices())


def unproject(features: Tensor, voxels: VoxelProjections) -> ViewSamples:
    """Sample every view's features [B, V, C, h, w] at the voxels, in the projections' dtype: the plain version. The
    fast ones sample and merge at once, in model/kernels/aggregation.py and triton_aggregation.py.

    Bilinear, with zeros beyond the image. Ray directions are sampled together with the features. At voxels that are not
    reachable features and rays are zero, but depth and validity are not: nothing renders those voxels, but the 3D CNN
    looks at them beside their neighbours.
    """
    B, V, C, height, width = features.shape
    valid = voxels.depth > 0
    size = voxels.pixels.new_tensor([width, height])
    # Pixels of points behind the camera are meaningless; -3 lies beyond the image, where the sampler reads zeros.
    positions = torch.where((valid & voxels.reachable)[..., None], voxels.pixels * (2 / size) - 1, -3.0)
    centers = pixel_centers((height, width), (height, width), like=voxels.pixels)
    directions = (voxels.ray_matrices[..., None, None] * centers).sum(-3)  # [B, V, 3, h, w]
    maps = torch.cat([features.to(positions.dtype), directions], dim=2).flatten(0, 1)
    samples = F.grid_sample(maps, positions.flatten(0, 1)[:, None], align_corners=False)  # [B*V, C+3, 1, N]
    samples = samples[:, :, 0].mT.unflatten(0, (B, V))
    return ViewSamples(samples[..., :C], samples[..., C:], voxels.depth, valid)


def elu_mlp(*channels: int) -> nn.Sequential:
    """Linear layers of these sizes, each followed by ELU."""
    return nn.Sequential(*(layer for a, b in itertools.pairwise(channels) for layer in (nn.Linear(a, b), nn.ELU())))


class ViewAggregator(nn.Module):
    """Merges what the views show at each voxel into one feature, after IBRNet (Wang et al. 2021, section 3.2).

    The order of the views does not matter. Works on each voxel alone.
    """

    def __init__(self, channels: int, timestep_channels: int) -> None:
        super().__init__()
        self.ray_encoder = elu_mlp(4, channels // 2, channels)
        self.timestep_encoder = elu_mlp(timestep_channels, timestep_channels // 2, channels)
        self.view_encoder = elu_mlp(3 * channels, 2 * channels, channels)
        self.visibility = elu_mlp(channels, channels, channels + 1)
        self.weight = nn.Sequential(nn.Linear(channels, channels), nn.ELU(), nn.Linear(channels, 1))
        self.output = elu_mlp(2 * channels + 1, channels)

    def forward(self, features: Tensor, voxels: VoxelProjections, timestep_embedding: Tensor) -> Tensor:
        """Features [B, V, C, h, w] of the views and their timestep embeddings [B, V, D] -> volume [B, C, N].

        Computed in the projections' dtype.
        """
        codes = self.timestep_encoder(timestep_embedding).to(voxels.depth.dtype)
        if version_for(features.movedim(2, -1)) == "plain":
            return self.merge(unproject(features, voxels), codes).mT
        weights = AggregationWeights(*(weight.to(codes.dtype) for weight in self.weights()))
        return aggregate(features, codes, voxels, weights)

    def weights(self) -> AggregationWeights:
        """The parameters that the fast versions take."""
        layers = (self.ray_encoder, self.view_encoder, self.visibility, self.weight, self.output)
        return AggregationWeights(*(parameter for layer in layers for parameter in layer.parameters()))

    def merge(self, samples: ViewSamples, codes: Tensor) -> Tensor:
        """Samples and the views' timestep codes [B, V, C] -> features [B, N, C]: the plain version, in whose place
        model/kernels/aggregation.py (tiled) or triton_aggregation.py runs, see model/kernels/selection.py.
        """
        mask = samples.valid[..., None].to(codes.dtype)
        ray_and_depth = torch.cat([samples.rays, samples.depth[..., None]], dim=-1)
        features = samples.features + self.ray_encoder(ray_and_depth) + codes[:, :, None]

        weights = _normalize_over_views(mask)
        statistics = [part[:, None].expand_as(features) for part in _mean_and_variance(features, weights)]
        encoded = self.view_encoder(torch.cat([*statistics, features], dim=-1))
        residual_and_visibility = self.visibility(encoded * weights)
        visibility = residual_and_visibility[..., -1:].sigmoid() * mask
        encoded = encoded + residual_and_visibility[..., :-1]
        weights = _normalize_over_views(self.weight(encoded * visibility).sigmoid() * mask)
        mean, variance = _mean_and_variance(encoded, weights)
        return self.output(torch.cat([mean, variance, weights.mean(dim=1)], dim=-1))


class MeanAggregator(nn.Module):
    """The mean over the views that see a voxel, without anything learned: an ablation."""

    def forward(self, features: Tensor, voxels: VoxelProjections, timestep_embedding: Tensor) -> Tensor:
        """Like `ViewAggregator.forward`; the timestep embedding is not used."""
        if version_for(features.movedim(2, -1)) == "plain":
            samples = unproject(features, voxels)
            weights = _normalize_over_views(samples.valid[..., None].to(samples.features.dtype))
            return (weights * samples.features).sum(dim=1).mT
        codes = voxels.depth.new_zeros(*features.shape[:3])
        return aggregate(features, codes, voxels, None)


def aggregate(features: Tensor, codes: Tensor, voxels: VoxelProjections, weights: AggregationWeights | None) -> Tensor:
    """The fast versions: features [B, V, C, h, w], codes [B, V, C] -> volume [B, C, N]; no weights: the plain mean."""
    channels_last = features.movedim(2, -1).to(codes.dtype).contiguous()
    return unproject_aggregate(channels_last, codes, *voxels, list(weights or ()))


def _normalize_over_views(weights: Tensor) -> Tensor:
    """[B, V, N, 1] -> the same, summing to one over the views, or to zero where no view sees the voxel."""
    return weights / (weights.sum(dim=1, keepdim=True) + WEIGHT_EPSILON)


def _mean_and_variance(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted over the views: [B, V, N, C], [B, V, N, 1] -> [B, N, C] twice."""
    mean = (weights * features).sum(dim=1)
    return mean, (weights * (features - mean[:, None]).square()).sum(dim=1)
