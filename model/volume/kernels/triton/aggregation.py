"""The aggregation's Triton version, the side that launches kernels: the paper, section 3.2, and
model/volume/kernels/aggregation.py.

Each program takes several blocks of voxels, so that there are few sums of the weights' gradients.

Shape letters: those of model/volume/kernels/aggregation.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from model.volume.kernels.inputs import AggregationInputs
from model.volume.kernels.selection import TRITON_CHANNELS
from model.volume.kernels.triton.aggregation_backward import differentiate_views
from model.volume.kernels.triton.aggregation_forward import aggregate_views
from model.volume.kernels.triton.aggregation_network import place, shapes
from model.volume.kernels.triton.aggregation_views import BLOCK, BLOCK_COLUMNS, BLOCK_LAYERS, BLOCK_ROWS, Views

# Two warps compute a block with 16 channels, four one with 32: a warp's registers do not hold more.
CHANNELS_PER_WARP = 8
# Warps that a multiprocessor runs at a time, which share its registers. The backward pass needs most results twice, so
# it gets the most that a thread can have.
FORWARD_WARPS = 16
BACKWARD_WARPS = 8
REGISTERS = 65_536
# Programs where there is no GPU, few enough that each has several blocks.
INTERPRETED_PROGRAMS = 3


class _Launch(NamedTuple):
    """How many programs, and of how many warps each."""

    programs: int
    warps: int
    registers: int  # of a thread, at most


def forward(inputs: AggregationInputs, weights: list[Tensor]) -> Tensor:
    """`model.volume.kernels.aggregation.unproject_aggregate`."""
    views, channels = _views(inputs), inputs.features.shape[-1]
    programs, warps, registers = _launch(views, channels, FORWARD_WARPS)
    volume = views.features.new_empty(views.num_samples, channels, views.num_voxels)
    scratch = views.features.new_empty(programs, views.num_views, BLOCK.value, channels)
    aggregate_views[(programs,)](
        views, _pack(weights, channels), scratch, volume, C=channels, num_warps=warps, maxnreg=registers
    )
    return volume


def backward(gradient: Tensor, inputs: AggregationInputs, weights: list[Tensor]) -> list[Tensor]:
    """Gradients of features, codes and weights for that of the volume [B, C, N]."""
    views, channels = _views(inputs), inputs.features.shape[-1]
    programs, warps, registers = _launch(views, channels, BACKWARD_WARPS)
    scratch = views.features.new_empty(programs, 2, views.num_views, BLOCK.value, channels)
    of_features = torch.zeros_like(views.features)
    of_weights = views.features.new_zeros(programs * warps, place("end", channels))
    of_codes = views.features.new_zeros(programs * warps, *views.codes.shape)
    differentiate_views[(programs,)](
        gradient.contiguous(), views, _pack(weights, channels), of_weights, scratch, of_features, of_codes,
        C=channels, GROUPS=warps, num_warps=warps, maxnreg=registers,
    )  # fmt: skip
    return [of_features, of_codes.sum(0), *_unpack(of_weights.sum(0), weights, channels)]


def _views(inputs: AggregationInputs) -> Views:
    features, view_codes, pixels, depth, reachable, ray_matrices = inputs
    num_samples, num_views, height, width, channels = features.shape
    if features.dtype != torch.float32 or channels not in TRITON_CHANNELS:
        raise ValueError(
            f"Triton's aggregation takes float32 and {TRITON_CHANNELS} channels, not {features.dtype}, {channels}"
        )
    num_voxels = depth.shape[2]
    side = round(num_voxels ** (1 / 3))
    layers, rows, columns = (side, side, side) if side**3 == num_voxels else (1, 1, num_voxels)
    # The first views of more, the usual case, are read where they are.
    pixels = pixels if pixels.stride()[2:] == (2, 1) else pixels.contiguous()
    depth = depth if depth.stride(2) == 1 else depth.contiguous()
    return Views(
        features=features.contiguous(),
        codes=view_codes.contiguous(),
        pixels=pixels,
        depth=depth,
        reachable=reachable.contiguous(),
        ray_matrices=ray_matrices.contiguous(),
        pixels_sample=pixels.stride(0),
        pixels_view=pixels.stride(1),
        depth_sample=depth.stride(0),
        depth_view=depth.stride(1),
        num_samples=num_samples,
        num_views=num_views,
        num_voxels=num_voxels,
        columns=columns,
        rows=rows,
        layers=layers,
        height=height,
        width=width,
    )


def _launch(views: Views, channels: int, warps_per_processor: int) -> _Launch:
    warps = channels // CHANNELS_PER_WARP
    programs = INTERPRETED_PROGRAMS
    if views.features.is_cuda:
        processors = torch.cuda.get_device_properties(views.features.device).multi_processor_count
        programs = processors * warps_per_processor // warps
    sides = (views.columns, BLOCK_COLUMNS), (views.rows, BLOCK_ROWS), (views.layers, BLOCK_LAYERS)
    blocks = views.num_samples * math.prod(triton.cdiv(extent, side.value) for extent, side in sides)
    return _Launch(min(programs, blocks), warps, min(255, REGISTERS // (32 * warps_per_processor)))


def _pack(weights: list[Tensor], channels: int) -> Tensor:
    """All weights one after another, each filled up with zeros to the shape that it has there."""
    parts = []
    for weight, shape in zip(weights, shapes(channels).values(), strict=True):
        missing = [extent - present for extent, present in zip(shape, weight.shape, strict=True)]
        padding = [number for extent in reversed(missing) for number in (0, extent)]
        parts.append((F.pad(weight, padding) if any(missing) else weight).flatten())
    return torch.cat(parts)


def _unpack(packed: Tensor, weights: list[Tensor], channels: int) -> list[Tensor]:
    """Tensors like the weights out of what lies like `_pack`'s result; copies, as an operator's results must be."""
    stored = shapes(channels).values()
    parts = torch.split_with_sizes_copy(packed, [math.prod(shape) for shape in stored])
    return [
        part.view(shape)[tuple(slice(extent) for extent in weight.shape)].contiguous()
        for part, shape, weight in zip(parts, stored, weights, strict=True)
    ]
