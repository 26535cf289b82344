"""What the two operators are given, whichever version runs: tensors with names."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Keeps the division by the sum of weights finite where no view sees a voxel.
WEIGHT_EPSILON = 1e-8


class AggregationInputs(NamedTuple):
    """What views show, and where they show the voxels."""

    features: Tensor  # [B, V, h, w, C]
    view_codes: Tensor  # [B, V, C]
    pixels: Tensor  # [B, V, N, 2], as the following those of `model.volume.filling.VoxelProjections`
    depth: Tensor  # [B, V, N]
    reachable: Tensor  # [N]
    ray_matrices: Tensor  # [B, V, 3, 3]


class AggregationWeights(NamedTuple):
    """Matrices and biases of `ViewAggregator`, in the order in which they are applied."""

    ray_in: Tensor  # [C/2, 4]
    ray_in_bias: Tensor
    ray_out: Tensor  # [C, C/2]
    ray_out_bias: Tensor
    view_in: Tensor  # [2C, 3C], sees [mean; variance; the view's feature]
    view_in_bias: Tensor
    view_out: Tensor  # [C, 2C]
    view_out_bias: Tensor
    visibility_in: Tensor  # [C, C]
    visibility_in_bias: Tensor
    visibility_out: Tensor  # [C + 1, C]
    visibility_out_bias: Tensor
    weight_in: Tensor  # [C, C]
    weight_in_bias: Tensor
    weight_out: Tensor  # [1, C]
    weight_out_bias: Tensor
    output: Tensor  # [C, 2C + 1]
    output_bias: Tensor


class MarchInputs(NamedTuple):
    """What rays are marched through, and where."""

    volume: Tensor  # [B, C, G, G, G]
    ray_codes: Tensor  # [B, V, R, C]
    points: Tensor  # [B, V, R, S, 3], as depths and intervals those of `model.volume.rendering.RaySamples`
    depths: Tensor  # [B, V, R, S]
    intervals: Tensor  # [B, V, R, S]
    noise: Tensor | None  # [B, V, R, S]


class MarchWeights(NamedTuple):
    """Matrices and biases of `VolumeRenderer`, in the order in which they are applied."""

    trunk_in: Tensor  # [C, C]
    trunk_in_bias: Tensor
    trunk_out: Tensor  # [C, C]
    trunk_out_bias: Tensor
    density: Tensor  # [1, C]
    density_bias: Tensor
    color_in: Tensor  # [C, C]
    color_in_bias: Tensor
    color_out: Tensor  # [C, C]
    color_out_bias: Tensor
