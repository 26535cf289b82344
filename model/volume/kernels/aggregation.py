"""Unproject + aggregate as one operator: features of the views in, one feature volume out (the paper, section 3.2).

Nothing of the size voxels × views × channels is ever kept. Tiles of voxels are computed one after another, each over
its valid (voxel, view) pairs only; the backward pass computes a tile again and differentiates it. So both passes share
one code, `_merge_tile`, and memory does not grow with the number of views beyond their own features.

The plain version, and what the weights mean: `unproject` and `ViewAggregator` in model/volume/filling.py.

Shape letters: B samples, V views, C channels, h × w pixels, N voxels; a tile's b samples, T voxels of all of them, P
valid pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.volume.kernels.inputs import WEIGHT_EPSILON, AggregationInputs, AggregationWeights
from model.volume.kernels.pairs import Pairs, find_pairs
from model.volume.kernels.selection import version_for

# Voxels × views of a tile, for each thread that works on it (four at most, or tiles would leave the cache): smaller
# tiles cost more to start than to compute.
PAIRS_PER_THREAD, MOST_THREADS = 32_768, 4


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
    see a voxel), reachable [N] and ray_matrices [B, V, 3, 3] are those of `model.volume.filling.VoxelProjections`.
    weights are `AggregationWeights`, or none for the plain mean over the views. Differentiable in features, codes
    and weights.
    """
    inputs = AggregationInputs(features, view_codes, pixels, depth, reachable, ray_matrices)
    if version_for(features) == "triton" and weights:
        # Triton is only installed where there is CUDA, or for tests
        from model.volume.kernels.triton import aggregation as triton_aggregation

        return triton_aggregation.forward(inputs, weights)
    tables = _tables(inputs)
    volume = features.new_empty(len(features), features.shape[-1], depth.shape[-1])
    for tile in _tiles(depth, PAIRS_PER_THREAD):
        pairs = _pairs(inputs, tile)
        merged = _merge_tile(pairs, _sample(tables[tile.samples], pairs), weights, num_views=depth.shape[1])
        of_tile = volume[tile.samples, :, tile.voxels]
        of_tile.copy_(merged.unflatten(0, (len(of_tile), -1)).mT)
    return volume


@torch.library.custom_op("viewdiff::unproject_aggregate_backward", mutates_args=())
def _backward(gradient: Tensor, inputs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Gradients of features, codes and weights for that of the volume [B, C, N]; inputs are `AggregationInputs`."""
    views = AggregationInputs(*inputs)
    if version_for(views.features) == "triton" and weights:
        from model.volume.kernels.triton import aggregation as triton_aggregation

        return triton_aggregation.backward(gradient, views, weights)
    tables, num_views = _tables(views), views.depth.shape[1]
    of_tables, of_weights = torch.zeros_like(tables), [torch.zeros_like(weight) for weight in weights]
    for tile in _tiles(views.depth, PAIRS_PER_THREAD // 2):  # all of a tile's intermediate results are kept here
        pairs = _pairs(views, tile)
        # autograd itself is switched off inside of an operator, its functional form is not.
        _, differentiate = torch.func.vjp(
            lambda *inputs, pairs=pairs: _merge_tile(pairs, inputs[0], inputs[1:], num_views=num_views),
            _sample(tables[tile.samples], pairs),
            *weights,
        )
        of_shown, *of_tile_weights = differentiate(gradient[tile.samples, :, tile.voxels].mT.flatten(0, 1))
        shares = pairs.row_weights[..., None] * of_shown[:, None]
        of_rows = of_tables[tile.samples].flatten(0, 1)
        of_rows.index_add_(0, pairs.rows.flatten().long(), shares.flatten(0, 1))  # slow for other indices
        for total, part in zip(of_weights, of_tile_weights, strict=True):
            total += part
    num_codes = views.view_codes.shape[1]
    of_features, of_codes = of_tables.split([of_tables.shape[1] - num_codes, num_codes], dim=1)
    return [of_features.reshape(views.features.shape).contiguous(), of_codes.clone(), *of_weights]


@unproject_aggregate.register_fake
def _(features, view_codes, pixels, depth, reachable, ray_matrices, weights):  # type: ignore[no-untyped-def]
    return features.new_empty(features.shape[0], features.shape[-1], depth.shape[-1])


@_backward.register_fake
def _(gradient, inputs, weights):  # type: ignore[no-untyped-def]
    return [torch.empty_like(tensor) for tensor in (*inputs[:2], *weights)]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, weights = inputs
    ctx.save_for_backward(*tensors, *weights)


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors  # read once: recomputation gives them only once
    inputs, weights = saved[: len(AggregationInputs._fields)], saved[len(AggregationInputs._fields) :]
    of_features, of_codes, *of_weights = _backward(gradient.contiguous(), inputs, weights)
    return of_features, of_codes, None, None, None, None, of_weights


unproject_aggregate.register_autograd(_differentiate, setup_context=_save)


class _Tile(NamedTuple):
    """Voxels that are computed together: those of several samples whole, or a part of one sample's."""

    samples: slice
    voxels: slice


def _tiles(depth: Tensor, pairs_per_thread: int) -> Iterator[_Tile]:
    """All samples' voxels. Neighbours in storage are neighbours in space, so a view sees most or none of a part."""
    num_samples, num_views, num_voxels = depth.shape
    size = max(1, pairs_per_thread * min(torch.get_num_threads(), MOST_THREADS) // num_views)
    whole = max(1, size // num_voxels)
    return (
        _Tile(slice(sample, sample + whole), slice(start, min(start + size, num_voxels)))
        for sample in range(0, num_samples, whole)
        for start in range(0, num_voxels, size)
    )


def _pairs(inputs: AggregationInputs, tile: _Tile) -> Pairs:
    features, _, pixels, depth, reachable, ray_matrices = inputs
    seen = pixels[tile.samples, :, tile.voxels], depth[tile.samples, :, tile.voxels]
    return find_pairs(*seen, reachable[tile.voxels], ray_matrices[tile.samples], feature_size=features.shape[2:4])


def _tables(inputs: AggregationInputs) -> Tensor:
    """Each sample's pixels and below them its views' codes, so that one lookup adds them up: [B, V*h*w + V, C]."""
    return torch.cat([inputs.features.flatten(1, 3), inputs.view_codes], dim=1)


def _sample(tables: Tensor, pairs: Pairs) -> Tensor:
    """What the tables [b, V*h*w + V, C] of a tile's samples hold for its pairs, [P, C]."""
    return F.embedding_bag(pairs.rows, tables.flatten(0, 1), per_sample_weights=pairs.row_weights, mode="sum")


def _merge_tile(pairs: Pairs, shown: Tensor, weights: list[Tensor] | tuple[Tensor, ...], *, num_views: int) -> Tensor:
    """One feature for each voxel of a tile, [T, C], of what views show at its pairs [P, C].

    `ViewAggregator.merge` line by line, with sums over a voxel's pairs instead of over all views.
    """
    share = 1 / (pairs.count.to(shown.dtype)[:, None] + WEIGHT_EPSILON)  # [T, 1]
    if not weights:
        return _sum(shown, pairs) * share
    w = AggregationWeights(*weights)
    shown = shown + _layer(_layer(pairs.ray_and_depth, w.ray_in, w.ray_in_bias), w.ray_out, w.ray_out_bias)

    mean = _sum(shown, pairs) * share
    difference = shown - _spread(mean, pairs)
    variance = _sum(difference * difference, pairs) * share
    of_statistics, of_view = w.view_in.tensor_split([2 * mean.shape[1]], dim=1)
    statistics = F.linear(torch.cat([mean, variance], dim=-1), of_statistics, w.view_in_bias)
    hidden = F.elu(F.linear(shown, of_view.contiguous()) + _spread(statistics, pairs), inplace=True)
    encoded = _layer(hidden, w.view_out, w.view_out_bias)

    visibility = _layer(encoded * _spread(share, pairs), w.visibility_in, w.visibility_in_bias)
    channels = encoded.shape[1]
    heads = zip(w.visibility_out.split(channels), w.visibility_out_bias.split(channels), strict=True)
    residual, visible = (_layer(visibility, weight, bias) for weight, bias in heads)
    encoded = encoded + residual
    visible = encoded * visible.sigmoid()
    weight = F.linear(_layer(visible, w.weight_in, w.weight_in_bias), w.weight_out, w.weight_out_bias).sigmoid()
    # Normalised before anything is multiplied by them: their gradients then lose fewer digits.
    weight = weight * _spread(1 / (_sum(weight, pairs) + WEIGHT_EPSILON), pairs)
    mean = _sum(weight * encoded, pairs)
    difference = encoded - _spread(mean, pairs)
    variance = _sum(weight * difference * difference, pairs)
    return _layer(torch.cat([mean, variance, _sum(weight, pairs) / num_views], dim=-1), w.output, w.output_bias)


def _layer(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.elu(F.linear(values, weight, bias), inplace=True)


def _sum(values: Tensor, pairs: Pairs) -> Tensor:
    """Sums over each voxel's pairs: [P, K] -> [T, K]."""
    return values.new_zeros(len(pairs.count), values.shape[1]).index_add_(0, pairs.voxel, values)


def _spread(values: Tensor, pairs: Pairs) -> Tensor:
    """Each voxel's value at its pairs: [T, K] -> [P, K]."""
    return values.index_select(0, pairs.voxel)
