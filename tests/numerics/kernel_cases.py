"""Inputs of the volume operators, and their plain versions, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ProjectionConfig
from model.rendering import RaySamples, VolumeRenderer, sample_rays
from model.volume import ViewAggregator, VoxelProjections, project_voxels
from tests.factories import look_at_cameras, randomize

SCENE_BOUNDS = torch.tensor([[-0.9, -1.0, -0.6], [1.3, 0.8, 1.4]])


class AggregationCase(NamedTuple):
    """Arguments of `ViewAggregator.forward`, and the module."""

    aggregator: ViewAggregator
    features: Tensor  # [B, V, C, h, w]
    voxels: VoxelProjections
    timestep_embedding: Tensor  # [B, V, D]


class MarchCase(NamedTuple):
    """Arguments of `VolumeRenderer.forward`, and the module."""

    renderer: VolumeRenderer
    volume: Tensor  # [B, C, G, G, G]
    rays: RaySamples
    image_size: tuple[int, int]
    noise: Tensor | None  # [B, V, R, S]


def aggregation_case(
    *,
    grid_size: int,
    num_samples: int = 2,
    num_views: int = 3,
    channels: int = 16,
    size: tuple[int, int] = (6, 8),
    background: bool = True,
    dtype: torch.dtype = torch.float32,
) -> AggregationCase:
    """Views that see the scene from around; one looks past a part of it."""
    torch.manual_seed(0)
    cameras = look_at_cameras(num_samples, num_views, image_size=size, radius=3.0, field_of_view=0.6).to(dtype)
    bounds = SCENE_BOUNDS.to(dtype).expand(num_samples, 2, 3)
    voxels = project_voxels(cameras, bounds, grid_size=grid_size, foreground_fraction=0.5 if background else None)
    voxels = voxels.resize(size)
    aggregator = ViewAggregator(channels, 8)
    randomize(aggregator, seed=1, std=0.1)
    features = torch.randn(num_samples, num_views, channels, *size, dtype=dtype)
    return AggregationCase(aggregator.to(dtype), features, voxels, torch.randn(num_samples, num_views, 8, dtype=dtype))


def march_case(
    *,
    grid_size: int,
    num_samples: int = 2,
    num_views: int = 2,
    channels: int = 16,
    size: tuple[int, int] = (3, 4),
    num_positions: int = 6,
    background: bool = True,
    noise: bool = True,
    dtype: torch.dtype = torch.float32,
) -> MarchCase:
    """A random volume, dense enough that rays end in it."""
    torch.manual_seed(0)
    cameras = look_at_cameras(num_samples, num_views, image_size=size, radius=3.0).to(dtype)
    bounds = SCENE_BOUNDS.to(dtype).expand(num_samples, 2, 3)
    config = ProjectionConfig(blocks=(), background=background, num_samples=num_positions)
    (rays,) = sample_rays(cameras, bounds, config, size)
    renderer = VolumeRenderer(channels)
    randomize(renderer, seed=1, std=0.1)
    torch.nn.init.constant_(renderer.density.bias, -0.5)
    volume = torch.randn(num_samples, channels, *(grid_size,) * 3, dtype=dtype)
    drawn = torch.randn(rays.depths.shape, dtype=dtype) if noise else None
    return MarchCase(renderer.to(dtype), volume, rays, size, drawn)
