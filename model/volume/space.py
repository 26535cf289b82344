"""Where voxels are in space: the scene's frame, the grid, the contracted background (the paper, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
