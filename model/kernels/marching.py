"""The ray march as one operator: a feature volume in, what rays see of it out (the paper, section 3.2; NeRF's
quadrature).

All samples of many rays are computed side by side: there is no loop along a ray. Only the inputs are kept for the
backward pass, which computes parts of the rays again and adds all that they send back to the volume to one buffer.

The plain version, and what the weights mean: `VolumeRenderer` in model/rendering.py.

Shape letters: B samples, V views, C channels, R rays of a view, S positions on a ray, G voxels per side; Q rays of a
part, P = Q*S positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.selection import version_for

# Positions that are computed together, about 1 kB each.
POSITIONS_PER_PART = 32_768


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


class _Part(NamedTuple):
    """Some rays of one sample. Nothing here is differentiated."""

    corners: Tensor  # [P, 8] indices of voxels
    corner_weights: Tensor  # [P, 8] trilinear; zero outside of the volume
    depths: Tensor  # [Q, S]
    intervals: Tensor  # [Q, S]
    noise: Tensor | None  # [Q, S]


@torch.library.custom_op("viewdiff::march", mutates_args=())
def march(
    volume: Tensor,
    ray_codes: Tensor,
    points: Tensor,
    depths: Tensor,
    intervals: Tensor,
    noise: Tensor | None,
    weights: list[Tensor],
) -> Tensor:
    """What rays see of a volume [B, C, G, G, G]: [B, V, R, C + 2], colour, opacity and depth, in one floating type.

    ray_codes [B, V, R, C] are added to the colour's hidden layer. points [B, V, R, S, 3], depths and intervals
    [B, V, R, S] are those of `model.rendering.RaySamples`; noise [B, V, R, S] is added to the density's input. weights
    are `MarchWeights`. Differentiable in volume, codes and weights.
    """
    if version_for(ray_codes) == "triton":
        from model.kernels import triton_marching  # Triton is only installed where there is CUDA, or for tests

        return triton_marching.forward(volume, ray_codes, points, depths, intervals, noise, weights)
    seen = ray_codes.new_empty(*ray_codes.shape[:3], ray_codes.shape[3] + 2)
    for sample, rays in _parts(points):
        part = _part(points, depths, intervals, noise, sample=sample, rays=rays, grid_size=volume.shape[-1])
        shown = _sample(_channels_last(volume[sample]), part)
        codes = ray_codes[sample].flatten(0, 1)[rays]
        seen[sample].view(-1, seen.shape[-1])[rays] = _march_part(part, shown, codes, weights)
    return seen


@torch.library.custom_op("viewdiff::march_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    volume: Tensor,
    ray_codes: Tensor,
    points: Tensor,
    depths: Tensor,
    intervals: Tensor,
    noise: Tensor | None,
    weights: list[Tensor],
) -> list[Tensor]:
    """Gradients of volume, codes and weights for that of the result [B, V, R, C + 2]."""
    if version_for(ray_codes) == "triton":
        from model.kernels import triton_marching

        return triton_marching.backward(gradient, volume, ray_codes, points, depths, intervals, noise, weights)
    of_volume = volume.new_zeros(len(volume), volume[0, 0].numel(), volume.shape[1])  # [B, G³, C], the only buffer
    of_codes, of_weights = torch.zeros_like(ray_codes), [torch.zeros_like(weight) for weight in weights]
    for sample, rays in _parts(points):
        part = _part(points, depths, intervals, noise, sample=sample, rays=rays, grid_size=volume.shape[-1])
        shown = _sample(_channels_last(volume[sample]), part)
        # autograd itself is switched off inside of an operator, its functional form is not.
        _, differentiate = torch.func.vjp(
            lambda *inputs, part=part: _march_part(part, inputs[0], inputs[1], inputs[2:]),
            shown,
            ray_codes[sample].flatten(0, 1)[rays],
            *weights,
        )
        of_shown, of_part_codes, *of_part_weights = differentiate(gradient[sample].flatten(0, 1)[rays])
        shares = part.corner_weights[..., None] * of_shown[:, None]
        of_volume[sample].index_add_(0, part.corners.flatten(), shares.flatten(0, 1))
        of_codes[sample].view(-1, of_codes.shape[-1])[rays] = of_part_codes
        for total, addend in zip(of_weights, of_part_weights, strict=True):
            total += addend
    return [_channels_first(of_volume, volume), of_codes, *of_weights]


@march.register_fake
def _(volume, ray_codes, points, depths, intervals, noise, weights):  # type: ignore[no-untyped-def]
    return ray_codes.new_empty(*ray_codes.shape[:3], ray_codes.shape[3] + 2)


@_backward.register_fake
def _(gradient, volume, ray_codes, points, depths, intervals, noise, weights):  # type: ignore[no-untyped-def]
    of_volume = _channels_first(volume.new_empty(len(volume), volume[0, 0].numel(), volume.shape[1]), volume)
    return [of_volume, torch.empty_like(ray_codes), *(torch.empty_like(weight) for weight in weights)]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, noise, weights = inputs
    ctx.save_for_backward(*tensors, noise, *weights)


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors  # read once: recomputation gives them only once
    tensors, weights = saved[:6], list(saved[6:])
    of_volume, of_codes, *of_weights = _backward(gradient.contiguous(), *tensors, weights)
    return of_volume, of_codes, None, None, None, None, of_weights


march.register_autograd(_differentiate, setup_context=_save)


def _parts(points: Tensor) -> Iterator[tuple[int, slice]]:
    """Each sample's rays, of all its views, in parts."""
    num_samples, num_views, num_rays, num_positions, _ = points.shape
    size, total = max(1, POSITIONS_PER_PART // num_positions), num_views * num_rays
    return ((sample, slice(start, start + size)) for sample in range(num_samples) for start in range(0, total, size))


def _part(
    points: Tensor, depths: Tensor, intervals: Tensor, noise: Tensor | None, *, sample: int, rays: slice, grid_size: int
) -> _Part:
    corners, corner_weights = trilinear_corners(points[sample].flatten(0, 1)[rays].flatten(0, 1), grid_size)
    along = (None if values is None else values[sample].flatten(0, 1)[rays] for values in (depths, intervals, noise))
    return _Part(corners, corner_weights, *along)


def trilinear_corners(points: Tensor, grid_size: int) -> tuple[Tensor, Tensor]:
    """Voxel indices and weights [P, 8] of grid coordinates [P, 3]: see `model.rendering.sample_volume`."""
    position = (points + 1) * (grid_size / 2) - 0.5  # index 0 at the first voxel's centre
    low = position.floor()
    steps = torch.arange(8, device=points.device)
    offsets = torch.stack([steps % 2, steps // 2 % 2, steps // 4], dim=-1).to(points.dtype)  # x fastest
    corner = low[:, None] + offsets  # [P, 8, 3]
    share = (1 - (position[:, None] - corner).abs()).prod(-1)
    inside = (corner < grid_size).all(-1) & (position >= 0).all(-1)[:, None]
    # A position that is no number reads some voxel; its depth, no number either, shows in the result.
    x, y, z = corner.nan_to_num(0).clamp(0, grid_size - 1).long().unbind(-1)
    return (z * grid_size + y) * grid_size + x, torch.where(inside, share, 0.0)


def _channels_last(volume: Tensor) -> Tensor:
    """[C, G, G, G] -> [G³, C], a view."""
    return volume.flatten(1).mT


def _channels_first(voxels: Tensor, like: Tensor) -> Tensor:
    """[B, G³, C] -> [B, C, G, G, G], a view."""
    return voxels.mT.view(like.shape)


def _sample(voxels: Tensor, part: _Part) -> Tensor:
    """Voxels [G³, C] at a part's positions -> [P, C]."""
    return F.embedding_bag(part.corners, voxels, per_sample_weights=part.corner_weights, mode="sum")


def _march_part(part: _Part, shown: Tensor, ray_codes: Tensor, weights: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Colour, opacity, depth [Q, C + 2] from what the volume shows [P, C] and codes [Q, C]."""
    w = MarchWeights(*weights)
    hidden = F.relu(F.linear(shown, w.trunk_in, w.trunk_in_bias))
    hidden = F.relu(F.linear(hidden, w.trunk_out, w.trunk_out_bias))
    density = F.linear(hidden, w.density, w.density_bias).view(part.depths.shape)
    if part.noise is not None:
        density = density + part.noise
    color = F.linear(hidden, w.color_in, w.color_in_bias).unflatten(0, part.depths.shape) + ray_codes[:, None]
    color = F.linear(F.relu(color), w.color_out, w.color_out_bias).sigmoid()  # [Q, S, C]

    transmittance = torch.exp(-torch.cumsum(F.softplus(density) * part.intervals, dim=-1))
    weight = F.pad(transmittance[:, :-1], (1, 0), value=1.0) - transmittance
    opacity = weight.sum(-1, keepdim=True)
    features = (weight[:, None] @ color)[:, 0] + (1 - opacity)
    return torch.cat([features, opacity, (weight * part.depths).sum(-1, keepdim=True)], dim=-1)
