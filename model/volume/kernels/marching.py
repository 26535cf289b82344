"""The ray march as one operator: a feature volume in, what rays see of it out (the paper, section 3.2; NeRF's
quadrature).

All samples of many rays are computed side by side: there is no loop along a ray. Only the inputs are kept for the
backward pass, which computes parts of the rays again and adds all that they send back to the volume to one buffer.

The plain version, and what the weights mean: `VolumeRenderer` in model/volume/rendering.py.

Shape letters: B samples, V views, C channels, R rays of a view, S positions on a ray, G voxels per side; Q rays of a
part, P = Q*S positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.volume.kernels.inputs import MarchInputs, MarchWeights
from model.volume.kernels.selection import version_for

# Positions that are computed together, about 1 kB each.
POSITIONS_PER_PART = 32_768


class _Part(NamedTuple):
    """Some rays, of one or several samples. Nothing here is differentiated."""

    rays: slice  # in the list of all samples' rays
    corners: Tensor  # [P, 8] indices of voxels in the list of all samples' voxels
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
    [B, V, R, S] are those of `model.volume.rendering.RaySamples`; noise [B, V, R, S] is added to the density's input.
    weights are `MarchWeights`. Differentiable in volume, codes and weights.
    """
    inputs = MarchInputs(volume, ray_codes, points, depths, intervals, noise)
    if version_for(ray_codes) == "triton":
        # Triton is only installed where there is CUDA, or for tests
        from model.volume.kernels.triton import marching as triton_marching

        return triton_marching.forward(inputs, weights)
    voxels, codes = _channels_last(volume), ray_codes.flatten(0, 2)
    seen = codes.new_empty(len(codes), codes.shape[1] + 2)
    for part in _parts(inputs):
        seen[part.rays] = _march_part(part, _sample(voxels, part), codes[part.rays], weights)
    return seen.view(*ray_codes.shape[:3], -1)


@torch.library.custom_op("viewdiff::march_backward", mutates_args=())
def _backward(gradient: Tensor, inputs: list[Tensor | None], weights: list[Tensor]) -> list[Tensor]:
    """Gradients of volume, codes and weights for that of the result [B, V, R, C + 2]; inputs are `MarchInputs`."""
    given = MarchInputs(*inputs)
    if version_for(given.ray_codes) == "triton":
        from model.volume.kernels.triton import marching as triton_marching

        return triton_marching.backward(gradient, given, weights)
    voxels, codes, of_seen = _channels_last(given.volume), given.ray_codes.flatten(0, 2), gradient.flatten(0, 2)
    of_voxels, of_codes = torch.zeros_like(voxels), torch.empty_like(codes)  # one buffer for what all parts send back
    of_weights = [torch.zeros_like(weight) for weight in weights]
    for part in _parts(given):
        # autograd itself is switched off inside of an operator, its functional form is not.
        _, differentiate = torch.func.vjp(
            lambda *inputs, part=part: _march_part(part, inputs[0], inputs[1], inputs[2:]),
            _sample(voxels, part),
            codes[part.rays],
            *weights,
        )
        of_shown, of_codes[part.rays], *of_part_weights = differentiate(of_seen[part.rays])
        shares = part.corner_weights[..., None] * of_shown[:, None]
        of_voxels.index_add_(0, part.corners.flatten().long(), shares.flatten(0, 1))  # slow for other indices
        for total, addend in zip(of_weights, of_part_weights, strict=True):
            total += addend
    return [_channels_first(of_voxels, given.volume), of_codes.view_as(given.ray_codes), *of_weights]


@march.register_fake
def _(volume, ray_codes, points, depths, intervals, noise, weights):  # type: ignore[no-untyped-def]
    return ray_codes.new_empty(*ray_codes.shape[:3], ray_codes.shape[3] + 2)


@_backward.register_fake
def _(gradient, inputs, weights):  # type: ignore[no-untyped-def]
    volume, ray_codes, *_ = inputs
    of_volume = _channels_first(volume.new_empty(volume.numel() // volume.shape[1], volume.shape[1]), volume)
    return [of_volume, torch.empty_like(ray_codes), *(torch.empty_like(weight) for weight in weights)]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, noise, weights = inputs
    ctx.save_for_backward(*tensors, noise, *weights)


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors  # read once: recomputation gives them only once
    inputs, weights = saved[: len(MarchInputs._fields)], saved[len(MarchInputs._fields) :]
    of_volume, of_codes, *of_weights = _backward(gradient.contiguous(), inputs, weights)
    return of_volume, of_codes, None, None, None, None, of_weights


march.register_autograd(_differentiate, setup_context=_save)


def _parts(inputs: MarchInputs) -> Iterator[_Part]:
    """All samples' rays, of all their views, in parts."""
    grid_size, (_, num_views, num_rays, num_positions) = inputs.volume.shape[-1], inputs.depths.shape
    size = max(1, POSITIONS_PER_PART // num_positions)
    of_rays = (inputs.depths, inputs.intervals, inputs.noise)
    points, along = (
        inputs.points.flatten(0, 2),
        [None if values is None else values.flatten(0, 2) for values in of_rays],
    )
    for start in range(0, len(points), size):
        rays = slice(start, min(start + size, len(points)))
        corners, corner_weights = trilinear_corners(points[rays].flatten(0, 1), grid_size)
        ray = torch.arange(rays.start, rays.stop, dtype=corners.dtype, device=points.device)
        first_voxel = ray // (num_views * num_rays) * grid_size**3  # of the ray's sample
        corners.unflatten(0, (-1, num_positions)).add_(first_voxel[:, None, None])
        yield _Part(rays, corners, corner_weights, *(None if values is None else values[rays] for values in along))


def trilinear_corners(points: Tensor, grid_size: int) -> tuple[Tensor, Tensor]:
    """Voxel indices and weights [P, 8] of grid coordinates [P, 3]: see `model.volume.rendering.sample_volume`."""
    position = (points.mT.contiguous() + 1) * (grid_size / 2) - 0.5  # [3, P], index 0 at the first voxel's centre
    low = position.floor()
    of_high = position - low
    last = grid_size - 1
    shares = torch.stack([1 - of_high, of_high * (low < last)], dim=1)  # [3, 2, P]: axis, low or high neighbour
    # A position that is no number reads some voxel; its depth, no number either, shows in the result.
    low = low.nan_to_num(0).clamp(0, last)
    places = torch.stack([low, (low + 1).clamp(max=last)], dim=1).int()
    inside = ((position >= 0) & (position < grid_size)).all(0)
    (of_x, of_y, of_z), (x, y, z) = shares, places
    corners = ((z * grid_size)[:, None] + y)[:, :, None] * grid_size + x  # [2, 2, 2, P], x fastest
    weights = (torch.where(inside, of_z, 0.0)[:, None] * of_y)[:, :, None] * of_x
    return corners.flatten(0, 2).mT.contiguous(), weights.flatten(0, 2).mT.contiguous()


def _channels_last(volume: Tensor) -> Tensor:
    """[B, C, G, G, G] -> [B*G³, C], a copy: a voxel's channels must lie side by side to be looked up fast."""
    return volume.flatten(2).mT.flatten(0, 1).contiguous()


def _channels_first(voxels: Tensor, like: Tensor) -> Tensor:
    """[B*G³, C] -> [B, C, G, G, G], a view."""
    return voxels.unflatten(0, (len(like), -1)).mT.view(like.shape)


def _sample(voxels: Tensor, part: _Part) -> Tensor:
    """All samples' voxels [B*G³, C] at a part's positions -> [P, C]."""
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
