"""Inputs of the volume operators, and their plain versions, for tests and benchmarks."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import ProjectionConfig
from model.volume.filling import MeanAggregator, ViewAggregator, VoxelProjections, project_voxels
from model.volume.rendering import RaySamples, VolumeRenderer, sample_rays
from tests.support.factories import look_at_cameras, randomize

SCENE_BOUNDS = torch.tensor([[-0.9, -1.0, -0.6], [1.3, 0.8, 1.4]])


class AggregationCase(NamedTuple):
    """A layer that merges views, and its inputs."""

    aggregator: ViewAggregator | MeanAggregator
    features: Tensor  # [B, V, C, h, w]
    voxels: VoxelProjections
    timestep_embedding: Tensor  # [B, V, D]

    def run(self) -> Tensor:
        """The volume [B, C, N]."""
        return self.aggregator(*self[1:])

    def inputs(self) -> dict[str, Tensor]:
        """All that the volume is differentiable in, which is switched on."""
        given = {"features": self.features, "timestep_embedding": self.timestep_embedding}
        return _differentiable(given, self.aggregator)

    def to(self, target: torch.dtype | str) -> AggregationCase:
        """A copy of another floating-point type or on another device."""
        return AggregationCase(
            deepcopy(self.aggregator).to(target),
            _moved(self.features, target),
            VoxelProjections(*(_moved(part, target) for part in self.voxels)),
            _moved(self.timestep_embedding, target),
        )


class MarchCase(NamedTuple):
    """A layer that renders, and its inputs."""

    renderer: VolumeRenderer
    volume: Tensor  # [B, C, G, G, G]
    rays: RaySamples
    image_size: tuple[int, int]
    noise: Tensor | None  # [B, V, R, S]

    def run(self) -> Tensor:
        """Features, opacity and depth [B, V, C + 2, h, w]."""
        return torch.cat(self.renderer(*self[1:]), dim=2)

    def inputs(self) -> dict[str, Tensor]:
        """All that the result is differentiable in, which is switched on."""
        return _differentiable({"volume": self.volume}, self.renderer)

    def to(self, target: torch.dtype | str) -> MarchCase:
        """A copy of another floating-point type or on another device."""
        return MarchCase(
            deepcopy(self.renderer).to(target),
            _moved(self.volume, target),
            RaySamples(*(_moved(part, target) for part in self.rays)),
            self.image_size,
            None if self.noise is None else _moved(self.noise, target),
        )


def _differentiable(given: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.requires_grad_() for name, tensor in given.items()} | dict(module.named_parameters())


def _moved(tensor: Tensor, target: torch.dtype | str) -> Tensor:
    """A leaf of its own; what is no floating-point number keeps its type."""
    stays = isinstance(target, torch.dtype) and not tensor.is_floating_point()
    return tensor.detach().clone() if stays else tensor.detach().to(target, copy=True)


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
