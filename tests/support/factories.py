"""Small random things that tests share."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from model.cameras import Cameras

TEXT_CHANNELS = 12


def tiny_unet(*, seed: int = 0, **settings: Any) -> UNet2DConditionModel:
    """A stock U-Net with two levels of 16 and 32 channels, attention in both and in the middle; `settings` override."""
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 2,  # diffusers means the number of heads by this
        "cross_attention_dim": TEXT_CHANNELS,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(**(config | settings))


def look_at_cameras(
    *shape: int, seed: int = 0, image_size: tuple[int, int] = (64, 64), radius: float = 4.0, field_of_view: float = 0.9
) -> Cameras:
    """Cameras of batch shape `shape` at random places on a sphere (radius ± 10 %) that look almost at the origin.

    `field_of_view` is vertical, in radians. Elevations stay within 60° of the horizon.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, *size, generator=generator)

    azimuth, elevation = uniform(low=-math.pi, high=math.pi), uniform(low=-math.pi / 3, high=math.pi / 3)
    outward = torch.stack([azimuth.cos() * elevation.cos(), azimuth.sin() * elevation.cos(), elevation.sin()], dim=-1)
    center = outward * radius * uniform(1, low=0.9, high=1.1)
    forward = torch.nn.functional.normalize(uniform(3, low=-0.1, high=0.1) - center, dim=-1)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0]).expand_as(forward)), dim=-1
    )
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2)
    world_to_camera = torch.eye(4).repeat(*shape, 1, 1)
    world_to_camera[..., :3, :3] = rotation
    world_to_camera[..., :3, 3] = -(rotation @ center[..., None])[..., 0]
    height, width = image_size
    focal_length = height / 2 / math.tan(field_of_view / 2)
    intrinsics = torch.tensor([[focal_length, 0, width / 2], [0, focal_length, height / 2], [0, 0, 1]])
    return Cameras(world_to_camera, intrinsics.repeat(*shape, 1, 1), image_size)


def randomize(module: torch.nn.Module, *, seed: int, std: float = 0.2) -> None:
    """Add normal noise to all parameters, so that layers that start at zero take part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
