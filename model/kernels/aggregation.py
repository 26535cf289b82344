"""Unproject + aggregate as one operator: features of the views in, one feature volume out (the paper, section 3.2).

Nothing of the size voxels × views × channels is ever kept. Tiles of voxels are computed one after another, each over
its valid (voxel, view) pairs only; the backward pass computes a tile again and differentiates it. So both passes share
one code, `_merge_tile`, and memory does not grow with the number of views beyond their own features.

The plain version, and what the weights mean: `unproject` and `ViewAggregator` in model/volume.py.

Shape letters: B samples, V views, C channels, h × w pixels, N voxels, T voxels of a tile, P valid pairs of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.selection import version_for

# Voxels × views of a tile. Its intermediate results, about 1 kB a pair, then stay in a core's cache.
PAIRS_PER_TILE = 16_384
# Keeps the division by the sum of weights finite where no view sees a voxel.
WEIGHT_EPSILON = 1e-8


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


class _Pairs(NamedTuple):
    """The valid (voxel, view) pairs of a tile, ordered by voxel. Nothing here is differentiated."""

    voxel: Tensor  # [P] index in the tile
    view: Tensor  # [P]
    corners: Tensor  # [P, 4] indices of pixels in the sample's V*h*w
    corner_weights: Tensor  # [P, 4] bilinear; zero beyond the image
    ray_and_depth: Tensor  # [P, 4]
    count: Tensor  # [T, 1] number of pairs of each voxel


@torch.library.custom_op("viewdiff::unproject_aggregate", mutates_args=())
def unproject_aggregate(
    features: Tensor,
    view_codes: Tensor,
    pixels: Tensor,
    depth: Tensor,
    reachable: Tensor,
    ray_matrices: Tensor,
    weights: list[Tensor],
) -> Tensor:
    """Feature volume [B, C, N] of views' features [B, V, h, w, C], all in one floating-point type.

    view_codes [B, V, C] are added to what a view shows. pixels [B, V, N, 2], depth [B, V, N] (0 where a view does not
    see a voxel), reachable [N] and ray_matrices [B, V, 3, 3] are those of `model.volume.VoxelProjections`. weights are
    `AggregationWeights`, or none for the plain mean over the views. Differentiable in features, codes and weights.
    """
    if version_for(features) == "triton" and weights:
        from model.kernels import triton_aggregation  # Triton is only installed where there is CUDA, or for tests

        return triton_aggregation.forward(features, view_codes, pixels, depth, reachable, ray_matrices, weights)
    volume = features.new_empty(len(features), features.shape[-1], depth.shape[-1])
    for sample, tile in _tiles(depth):
        pairs = _pairs(pixels[sample][:, tile], depth[sample][:, tile], reachable[tile], ray_matrices[sample], features)
        volume[sample, :, tile] = _merge_tile(pairs, features[sample], view_codes[sample], weights).mT
    return volume


@torch.library.custom_op("viewdiff::unproject_aggregate_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    features: Tensor,
    view_codes: Tensor,
    pixels: Tensor,
    depth: Tensor,
    reachable: Tensor,
    ray_matrices: Tensor,
    weights: list[Tensor],
) -> list[Tensor]:
    """Gradients of features, codes and weights for that of the volume [B, C, N]."""
    if version_for(features) == "triton" and weights:
        from model.kernels import triton_aggregation

        return triton_aggregation.backward(
            gradient, features, view_codes, pixels, depth, reachable, ray_matrices, weights
        )
    of_features, of_codes = torch.zeros_like(features), torch.zeros_like(view_codes)
    of_weights = [torch.zeros_like(weight) for weight in weights]
    for sample, tile in _tiles(depth):
        pairs = _pairs(pixels[sample][:, tile], depth[sample][:, tile], reachable[tile], ray_matrices[sample], features)
        # autograd itself is switched off inside of an operator, its functional form is not.
        _, differentiate = torch.func.vjp(
            lambda *inputs, pairs=pairs: _merge_tile(pairs, inputs[0], inputs[1], inputs[2:]),
            features[sample],
            view_codes[sample],
            *weights,
        )
        sums = (of_features[sample], of_codes[sample], *of_weights)
        for total, part in zip(sums, differentiate(gradient[sample, :, tile].mT), strict=True):
            total += part
    return [of_features, of_codes, *of_weights]


@unproject_aggregate.register_fake
def _(features, view_codes, pixels, depth, reachable, ray_matrices, weights):  # type: ignore[no-untyped-def]
    return features.new_empty(features.shape[0], features.shape[-1], depth.shape[-1])


@_backward.register_fake
def _(gradient, features, view_codes, pixels, depth, reachable, ray_matrices, weights):  # type: ignore[no-untyped-def]
    return [torch.empty_like(tensor) for tensor in (features, view_codes, *weights)]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, weights = inputs
    ctx.save_for_backward(*tensors, *weights)


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]
    tensors, weights = ctx.saved_tensors[:6], list(ctx.saved_tensors[6:])
    of_features, of_codes, *of_weights = _backward(gradient.contiguous(), *tensors, weights)
    return of_features, of_codes, None, None, None, None, of_weights


unproject_aggregate.register_autograd(_differentiate, setup_context=_save)


def _tiles(depth: Tensor) -> Iterator[tuple[int, slice]]:
    """Each sample's voxels in parts; neighbours in storage are neighbours in space, so a view sees most or none."""
    num_samples, num_views, num_voxels = depth.shape
    size = max(1, PAIRS_PER_TILE // num_views)
    return (
        (sample, slice(start, start + size)) for sample in range(num_samples) for start in range(0, num_voxels, size)
    )


def _pairs(pixels: Tensor, depth: Tensor, reachable: Tensor, ray_matrices: Tensor, features: Tensor) -> _Pairs:
    """The pairs of a tile: pixels [V, T, 2], depth [V, T], reachable [T], ray_matrices [V, 3, 3], features [B, V, ...].

    A ray direction is an affine function of the pixel, so sampling a map of directions bilinearly is the function of
    the corners' weighted mean; the weights sum to less than one at the image's border.
    """
    height, width = features.shape[2:4]
    voxel, view = (depth.mT > 0).nonzero(as_tuple=True)
    corner = pixels[view, voxel] - 0.5
    low = corner.floor()
    offsets = corner.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    column, row = (low[:, None] + offsets).unbind(-1)  # [P, 4] each
    share = (1 - (corner[:, None] - low[:, None] - offsets).abs()).prod(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & reachable[voxel][:, None]
    share = torch.where(inside, share, 0.0)
    index = (view[:, None] * height + row.clamp(0, height - 1)) * width + column.clamp(0, width - 1)
    mean_corner = torch.stack([(share * (column + 0.5)).sum(1), (share * (row + 0.5)).sum(1), share.sum(1)], dim=-1)
    rays = (ray_matrices[view] * mean_corner[:, None]).sum(-1)
    ray_and_depth = torch.cat([rays, depth[view, voxel][:, None]], dim=-1)
    count = (depth > 0).sum(0, dtype=depth.dtype)[:, None]
    return _Pairs(voxel, view, index.long(), share, ray_and_depth, count)


def _merge_tile(pairs: _Pairs, features: Tensor, view_codes: Tensor, weights: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """One feature for each voxel of a tile, [T, C], of a sample's features [V, h, w, C] and codes [V, C].

    `ViewAggregator.forward` line by line, with sums over a voxel's pairs instead of over all views.
    """
    shown = F.embedding_bag(pairs.corners, features.flatten(0, 2), per_sample_weights=pairs.corner_weights, mode="sum")
    share = 1 / (pairs.count + WEIGHT_EPSILON)  # [T, 1]
    if not weights:
        return _sum(shown, pairs) * share
    w = AggregationWeights(*weights)
    shown = shown + _layer(_layer(pairs.ray_and_depth, w.ray_in, w.ray_in_bias), w.ray_out, w.ray_out_bias)
    shown = shown + view_codes.index_select(0, pairs.view)

    mean = _sum(shown, pairs) * share
    variance = _sum((shown - _spread(mean, pairs)).square(), pairs) * share
    of_statistics, of_view = w.view_in.split([2 * mean.shape[1], mean.shape[1]], dim=1)
    statistics = F.linear(torch.cat([mean, variance], dim=-1), of_statistics, w.view_in_bias)
    hidden = F.elu(F.linear(shown, of_view) + _spread(statistics, pairs))
    encoded = _layer(hidden, w.view_out, w.view_out_bias)

    visibility = _layer(encoded * _spread(share, pairs), w.visibility_in, w.visibility_in_bias)
    residual_and_visibility = _layer(visibility, w.visibility_out, w.visibility_out_bias)
    encoded = encoded + residual_and_visibility[:, :-1]
    visible = encoded * residual_and_visibility[:, -1:].sigmoid()
    weight = F.linear(_layer(visible, w.weight_in, w.weight_in_bias), w.weight_out, w.weight_out_bias).sigmoid()
    total = _sum(weight, pairs)
    weight = weight / (_spread(total, pairs) + WEIGHT_EPSILON)
    mean = _sum(weight * encoded, pairs)
    variance = _sum(weight * (encoded - _spread(mean, pairs)).square(), pairs)
    mean_weight = total / (total + WEIGHT_EPSILON) / len(view_codes)
    return _layer(torch.cat([mean, variance, mean_weight], dim=-1), w.output, w.output_bias)


def _layer(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.elu(F.linear(values, weight, bias))


def _sum(values: Tensor, pairs: _Pairs) -> Tensor:
    """Sums over each voxel's pairs: [P, K] -> [T, K]."""
    return values.new_zeros(len(pairs.count), values.shape[1]).index_add(0, pairs.voxel, values)


def _spread(values: Tensor, pairs: _Pairs) -> Tensor:
    """Each voxel's value at its pairs: [T, K] -> [P, K]."""
    return values.index_select(0, pairs.voxel)
