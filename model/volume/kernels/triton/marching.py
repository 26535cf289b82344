"""The ray march's Triton version, the side that launches kernels: the paper, section 3.2, and
model/volume/kernels/marching.py.

A program computes all positions of a ray at once, or those of several short rays. Where the positions on a ray are no
power of two, as many as lack are added whose interval is zero, so that nothing is seen there.

Shape letters: those of model/volume/kernels/marching.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from model.volume.kernels.inputs import MarchInputs
from model.volume.kernels.selection import TRITON_CHANNELS
from model.volume.kernels.triton.marching_backward import differentiate_rays
from model.volume.kernels.triton.marching_forward import march_rays

# Positions × channels that programs compute at once, if a ray is not longer: 16 values of each layer for a thread.
VALUES_PER_TILE = 4096
VALUES_PER_WARP = 512
# With these registers for a thread, a multiprocessor runs two programs of that size at once. One of them computes while
# the other waits for voxels.
REGISTERS = 128
PROGRAMS_PER_PROCESSOR = 2
# Programs of a backward pass where there is no GPU, few enough that each has several tiles.
INTERPRETED_PROGRAMS = 2


class _Tiles(NamedTuple):
    """How rays are divided, as the kernels' arguments."""

    num_rays: int  # of a sample
    num_positions: int
    grid_size: int
    number: int  # of tiles
    shape: dict[str, bool | int]  # constants of the compiled kernel
    launch: dict[str, int]


def forward(inputs: MarchInputs, weights: list[Tensor]) -> Tensor:
    """`model.volume.kernels.marching.march`."""
    tiles, codes = _tiles(inputs), inputs.ray_codes
    seen = codes.new_empty(*codes.shape[:3], codes.shape[3] + 2)
    march_rays[(tiles.number,)](seen, *_arguments(inputs, weights), *tiles[:3], **tiles.shape, **tiles.launch)
    return seen


def backward(gradient: Tensor, inputs: MarchInputs, weights: list[Tensor]) -> list[Tensor]:
    """Gradients of volume, codes and weights for that of the result [B, V, R, C + 2]."""
    tiles, volume = _tiles(inputs), inputs.volume
    programs = min(tiles.number, _programs(volume.device))
    of_voxels = volume.new_zeros(len(volume), volume[0, 0].numel(), volume.shape[1])  # [B, G³, C]
    of_codes = torch.empty_like(inputs.ray_codes, memory_format=torch.contiguous_format)
    of_weights = volume.new_zeros(programs, sum(weight.numel() for weight in weights))
    differentiate_rays[(programs,)](
        gradient.contiguous(),
        *_arguments(inputs, weights),
        of_voxels,
        of_codes,
        of_weights,
        *tiles[:4],
        of_weights.shape[1],
        **tiles.shape,
        **tiles.launch,
    )
    of_volume = of_voxels.mT.view(volume.shape)  # no copy: what comes before takes the channels of a voxel side by side
    return [of_volume, of_codes, *_unpack(of_weights.sum(0), weights)]


def _tiles(inputs: MarchInputs) -> _Tiles:
    volume, _, points, _, _, noise = inputs
    channels, (num_samples, num_views, num_rays, num_positions, _) = volume.shape[1], points.shape
    if points.dtype != torch.float32 or channels not in TRITON_CHANNELS:
        raise ValueError(
            f"Triton's ray march takes float32 and {TRITON_CHANNELS} channels, not {points.dtype}, {channels}"
        )
    positions = triton.next_power_of_2(num_positions)
    rays = max(1, VALUES_PER_TILE // channels // positions)
    return _Tiles(
        num_rays=num_views * num_rays,
        num_positions=num_positions,
        grid_size=volume.shape[-1],
        number=num_samples * triton.cdiv(num_views * num_rays, rays),
        shape={"HAS_NOISE": noise is not None, "CHANNELS": channels, "RAYS": rays, "POSITIONS": positions},
        launch={
            "num_warps": min(16, rays * positions * channels // VALUES_PER_WARP),
            "num_stages": 1,  # loading the next tile's voxels ahead would need more shared memory than there is
            "maxnreg": REGISTERS,
        },
    )


def _arguments(inputs: MarchInputs, weights: list[Tensor]) -> list[Tensor]:
    """The kernels' inputs; all channels of a voxel lie side by side, since rays see all of them at once."""
    voxels = inputs.volume.flatten(2).mT.contiguous()  # [B, G³, C]
    packed = torch.cat([weight.flatten() for weight in weights])
    tensors = [inputs.depths if tensor is None else tensor for tensor in inputs[1:]]  # any in place of no noise
    return [voxels, *(tensor.contiguous() for tensor in tensors), packed]


def _unpack(packed: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Tensors like the weights, of numbers that lie one after another; copies, as an operator's results must be."""
    parts = packed.split([weight.numel() for weight in weights])
    return torch._foreach_add([part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)], 0.0)


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_PROCESSOR
