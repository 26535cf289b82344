"""The valid (voxel, view) pairs of a tile: which views see a voxel, and which pixels they show there (the
paper, section 3.2, "unprojection").

Shape letters: b samples of a tile, V views, C channels, h × w pixels, n voxels of each sample, T = b*n voxels, P valid
pairs of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """The valid (voxel, view) pairs of a tile. Nothing here is differentiated."""

    voxel: Tensor  # [P] index in the tile
    rows: Tensor  # [P, 5] of the samples' tables, one below the other: four pixels, the view's code
    row_weights: Tensor  # [P, 5] bilinear weights, zero beyond the image; 1
    ray_and_depth: Tensor  # [P, 4]
    count: Tensor  # [T] number of pairs of each voxel


def find_pairs(
    pixels: Tensor, depth: Tensor, reachable: Tensor, ray_matrices: Tensor, *, feature_size: tuple[int, int]
) -> Pairs:
    """The pairs of a tile: pixels [b, V, n, 2], depth [b, V, n], reachable [n], ray_matrices [b, V, 3, 3].

    A ray direction is an affine function of the pixel, so sampling a map of directions bilinearly is the function of
    the corners' weighted mean; the weights sum to less than one at the image's border.
    """
    (num_samples, num_views, num_voxels), (height, width) = depth.shape, feature_size
    left, of_left, of_right = _neighbours(pixels[..., 0], width)  # [b, V, n] each
    top, of_top, of_bottom = _neighbours(pixels[..., 1], height)
    of_top, of_bottom = of_top * reachable, of_bottom * reachable
    across, down = of_left + of_right, of_top + of_bottom
    mean_u = torch.addcmul(of_right, left + 0.5, across) * down  # the right one is left + 1
    mean_v = torch.addcmul(of_bottom, top + 0.5, down) * across
    m, weight = ray_matrices.flatten(2)[..., None].unbind(2), across * down  # nine of [b, V, 1]
    rays = [torch.addcmul(m[i] * mean_u, m[i + 1], mean_v).addcmul_(m[i + 2], weight) for i in (0, 3, 6)]

    columns = left.clamp(min=0), (left + 1).clamp(max=width - 1)
    lines = (line * width for line in (top.clamp(min=0), (top + 1).clamp(max=height - 1)))
    rows = [line + column for line in lines for column in columns]
    row_weights = [y * x for y in (of_top, of_bottom) for x in (of_left, of_right)]

    # Side by side for all pairs up to here, which costs less than picking the valid ones out of each table.
    seen = depth > 0
    place = seen.flatten().nonzero()[:, 0]
    view = place // num_voxels  # among those of all samples

    def pick(*columns: Tensor) -> Tensor:
        return torch.stack(columns, dim=-1).flatten(0, 2).index_select(0, place)

    first_rows = _first_rows(num_samples, num_views, height * width, depth.device)
    return Pairs(
        voxel=place % num_voxels + view // num_views * num_voxels,
        rows=pick(*rows, torch.zeros_like(depth)).int() + first_rows.index_select(0, view),
        row_weights=pick(*row_weights, torch.ones_like(depth)),
        ray_and_depth=pick(*rays, depth),
        count=seen.sum(1).flatten(),
    )


def _first_rows(num_samples: int, num_views: int, num_pixels: int, device: torch.device) -> Tensor:
    """Where each view's pixels start in the samples' tables, four times, and where its code is: [b*V, 5]."""
    view = torch.arange(num_samples * num_views, dtype=torch.int32, device=device)
    sample = view // num_views
    code = (sample + 1) * (num_views * num_pixels) + view
    pixels = view * num_pixels + sample * num_views
    return torch.stack([pixels] * 4 + [code], dim=-1)


def _neighbours(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixel before a coordinate in [0, size], and bilinear weights of it and the next: 0 beyond the image."""
    position = coordinate - 0.5  # pixel centres lie at half-integers
    low = position.floor()
    fraction = position - low
    return low, (1 - fraction) * (low + 1).clamp(max=1), fraction * (size - 1 - low).clamp(max=1)
