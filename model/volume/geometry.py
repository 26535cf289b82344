"""What follows from cameras and scene alone, computed once and shared by all projection layers of the same size (the
paper, section 3.2).

A layer is known by its grid size and the size of the features that it sees. During training this is computed once per
call of the network, during generation once for all denoising steps.

Shape letters: B samples, V views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from model.cameras import Cameras
from model.config import ProjectionConfig
from model.volume.filling import VoxelProjections, project_voxels
from model.volume.rendering import RaySamples, sample_rays


class LayerShape(NamedTuple):
    """What layers must have in common to share their geometry."""

    grid_size: int  # voxels per side
    feature_size: tuple[int, int]  # (height, width) pixels


class LayerGeometry(NamedTuple):
    """Where the views show the layer's voxels, and where their rays meet its volume."""

    voxels: VoxelProjections
    rays: RaySamples

    def map_views(self, change: Callable[[Tensor], Tensor]) -> LayerGeometry:
        """The same for other views, which `change` makes of each tensor [B, V, ...]."""
        return LayerGeometry(self.voxels.map_views(change), RaySamples(*map(change, self.rays)))


Geometry = Mapping[LayerShape, LayerGeometry]


@torch.no_grad()
def compute_geometry(
    cameras: Cameras, scene_bounds: Tensor, shapes: Iterable[LayerShape], config: ProjectionConfig
) -> Geometry:
    """The geometry of cameras [B, V] around scene_bounds [B, 2, 3], for every different layer shape; in float32 at
    least, whatever the network computes in.
    """
    different = sorted(set(shapes))
    if not different:
        return {}
    fraction = config.foreground_fraction if config.background else None
    grid_sizes = {shape.grid_size for shape in different}
    feature_sizes = sorted({shape.feature_size for shape in different})
    with torch.autocast(scene_bounds.device.type, enabled=False):
        rays = dict(zip(feature_sizes, sample_rays(cameras, scene_bounds, config, *feature_sizes), strict=True))
        voxels = {
            grid_size: project_voxels(cameras, scene_bounds, grid_size=grid_size, foreground_fraction=fraction)
            for grid_size in grid_sizes
        }
        return {
            shape: LayerGeometry(voxels[shape.grid_size].resize(shape.feature_size), rays[shape.feature_size])
            for shape in different
        }
