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


def find_pairs(pixels: Tensor, depth: Tensor, reachable: Tensor, ray_matrices: Tensor, features: Tensor) -> Pairs:
    """The pairs of a tile: pixels [V, T, 2], depth [V, T], reachable [T], ray_matrices [V, 3, 3], features [B, V, ...].

    A ray direction is an affine function of the pixel, so sampling a map of directions bilinearly is the function of
    the corners' weighted mean; the weights sum to less than one at the image's border.
    """
    (num_views, num_voxels), (height, width) = depth.shape, features.shape[2:4]
    left, right, of_left, of_right = _neighbours(pixels[..., 0], width)  # [V, T] each
    top, bottom, of_top, of_bottom = _neighbours(pixels[..., 1], height)
    of_top, of_bottom = of_top * reachable, of_bottom * reachable
    across, down = of_left + of_right, of_top + of_bottom
    mean_u = ((left + 0.5) * of_left + (right + 0.5) * of_right) * down
    mean_v = ((top + 0.5) * of_top + (bottom + 0.5) * of_bottom) * across
    m, weight = ray_matrices.flatten(1)[..., None].unbind(1), across * down  # nine of [V, 1]
    rays = [m[row] * mean_u + m[row + 1] * mean_v + m[row + 2] * weight for row in (0, 3, 6)]

    view = torch.arange(num_views, dtype=depth.dtype, device=depth.device)[:, None]
    code = (view + num_views * height * width).expand_as(depth)
    rows = [view * (height * width) + y * width + x for y in (top, bottom) for x in (left, right)]
    rows = torch.stack([*rows, code], dim=-1).int()  # whole numbers below 2^24, which float32 holds exactly
    row_weights = [y * x for y in (of_top, of_bottom) for x in (of_left, of_right)]
    row_weights = torch.stack([*row_weights, torch.ones_like(depth)], dim=-1)

    # Side by side for all pairs up to here, which costs less than picking the valid ones out of each table.
    seen = depth > 0
    place = seen.flatten().nonzero()[:, 0]
    return Pairs(
        voxel=place % num_voxels,
        rows=rows.view(-1, 5).index_select(0, place),
        row_weights=row_weights.view(-1, 5).index_select(0, place),
        ray_and_depth=torch.stack([*rays, depth], dim=-1).view(-1, 4).index_select(0, place),
        count=seen.sum(0),
    )


def _neighbours(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels around a coordinate in [0, size], and their bilinear weights, 0 beyond the image."""
    position = coordinate - 0.5  # pixel centres lie at half-integers
    low = position.floor()
    fraction, high = position - low, low + 1
    of_low, of_high = (1 - fraction) * high.clamp(max=1), fraction * (size - high).clamp(max=1)
    return low.clamp(min=0), high.clamp(max=size - 1), of_low, of_high
