"""The valid (voxel, view) pairs of a tile: which views see a voxel, and which pixels they show there (the
paper, section 3.2, "unprojection").

Shape letters: V views, C channels, h × w pixels, T voxels of a tile, P valid pairs of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """The valid (voxel, view) pairs of a tile. Nothing here is differentiated."""

    voxel: Tensor  # [P] index in the tile
    rows: Tensor  # [P, 5] of the sample's table: four pixels, the view's code
    row_weights: Tensor  # [P, 5] bilinear weights, zero beyond the image; 1
    ray_and_depth: Tensor  # [P, 4]
    count: Tensor  # [T] number of pairs of each voxel


def find_pairs(
    pixels: Tensor, depth: Tensor, reachable: Tensor, ray_matrices: Tensor, feature_size: tuple[int, int]
) -> Pairs:
    """The pairs of a tile: pixels [V, T, 2], depth [V, T], reachable [T], ray_matrices [V, 3, 3].

    A ray direction is an affine function of the pixel, so sampling a map of directions bilinearly is the function of
    the corners' weighted mean; the weights sum to less than one at the image's border.
    """
    (num_views, num_voxels), (height, width) = depth.shape, feature_size
    left, of_left, of_right = _neighbours(pixels[..., 0], width)  # [V, T] each
    top, of_top, of_bottom = _neighbours(pixels[..., 1], height)
    of_top, of_bottom = of_top * reachable, of_bottom * reachable
    across, down = of_left + of_right, of_top + of_bottom
    mean_u = torch.addcmul(of_right, left + 0.5, across) * down  # the right one is left + 1
    mean_v = torch.addcmul(of_bottom, top + 0.5, down) * across
    m, weight = ray_matrices.flatten(1)[..., None].unbind(1), across * down  # nine of [V, 1]
    rays = [torch.addcmul(m[i] * mean_u, m[i + 1], mean_v).addcmul_(m[i + 2], weight) for i in (0, 3, 6)]

    view = torch.arange(num_views, dtype=depth.dtype, device=depth.device)[:, None]
    code = (view + num_views * height * width).expand(-1, num_voxels)
    columns = left.clamp(min=0), (left + 1).clamp(max=width - 1)
    starts = [y * width + view * (height * width) for y in (top.clamp(min=0), (top + 1).clamp(max=height - 1))]
    rows = torch.stack([*(start + column for start in starts for column in columns), code], dim=-1)
    row_weights = [y * x for y in (of_top, of_bottom) for x in (of_left, of_right)]
    row_weights = torch.stack([*row_weights, torch.ones_like(depth)], dim=-1)

    # Side by side for all pairs up to here, which costs less than picking the valid ones out of each table.
    seen = depth > 0
    place = seen.flatten().nonzero()[:, 0]
    return Pairs(
        voxel=place % num_voxels,
        rows=rows.view(-1, 5).index_select(0, place).int(),  # whole numbers below 2^24, which float32 holds exactly
        row_weights=row_weights.view(-1, 5).index_select(0, place),
        ray_and_depth=torch.stack([*rays, depth], dim=-1).view(-1, 4).index_select(0, place),
        count=seen.sum(0),
    )


def _neighbours(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixel before a coordinate in [0, size], and bilinear weights of it and the next: 0 beyond the image."""
    position = coordinate - 0.5  # pixel centres lie at half-integers
    low = position.floor()
    fraction = position - low
    return low, (1 - fraction) * (low + 1).clamp(max=1), fraction * (size - 1 - low).clamp(max=1)
