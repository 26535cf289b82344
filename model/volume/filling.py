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
from model.volume.kernels.aggregation import unproject_aggregate
from model.volume.kernels.inputs import WEIGHT_EPSILON, AggregationWeights
from model.volume.kernels.selection import version_for
from model.volume.space import SceneFrame, voxel_grid


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
    fast ones sample and merge at once, in model/volume/kernels/, in files called aggregation.

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
        """Samples and the views' timestep codes [B, V, C] -> features [B, N, C]: the plain version, in whose place one
        of model/volume/kernels/ runs, see selection.py there.
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
