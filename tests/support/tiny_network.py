"""A tiny ViewDiffUNet of which every layer takes part, inputs for it, and requests to generate with it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler

from model.config import ProjectionConfig, ViewDiffConfig
from model.diffusion.sampling import ViewRequest
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from tests.support.factories import TEXT_CHANNELS, look_at_cameras, randomize, tiny_unet

BLOCKS = (("down_blocks.1", 6), ("mid_block", 4), ("up_blocks.0", 6))
LATENT_CHANNELS, TEXT_LENGTH = 4, 5


def tiny_config(*, projection: dict[str, Any] | None = None, **settings: Any) -> ViewDiffConfig:
    """Three blocks with projection layers; settings of those and of the whole override."""
    layers: dict[str, Any] = {"blocks": BLOCKS, "num_samples": 4}
    return ViewDiffConfig(**({"rank": 2, "projection": ProjectionConfig(**(layers | (projection or {})))} | settings))


def tiny_network(config: ViewDiffConfig | None = None) -> ViewDiffUNet:
    """Random weights everywhere, also where a new network starts at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ViewDiffUNet(tiny_unet(), config or tiny_config())
    randomize(network, seed=1, std=0.05)
    return network


def random_scene(num_samples: int, num_views: int, *, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Scene:
    """Views of `size` latent pixels; bounds whose sides differ."""
    bounds = torch.tensor([[-1.0, -0.8, -0.6], [1.0, 0.8, 0.6]])
    return Scene(
        cameras=look_at_cameras(num_samples, num_views, seed=seed, image_size=(8 * size[0], 8 * size[1])),
        scene_bounds=bounds.repeat(num_samples, 1, 1),
        intensity=torch.rand(num_samples, num_views, 2, generator=torch.Generator().manual_seed(seed)),
    )


def random_inputs(num_samples: int, num_views: int, *, seed: int = 0, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    """Arguments of the network's forward."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(num_samples, num_views, LATENT_CHANNELS, *size, generator=generator),
        "timesteps": torch.randint(1000, (num_samples, 1), generator=generator).repeat(1, num_views),
        "text": torch.randn(num_samples, TEXT_LENGTH, TEXT_CHANNELS, generator=generator),
        "scene": random_scene(num_samples, num_views, seed=seed, size=size),
    }


def base_scheduler(prediction_type: str = "epsilon") -> DDPMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


def random_request(num_samples: int = 2, num_views: int = 4, *, num_known: int = 1, seed: int = 0) -> ViewRequest:
    """Views of 8 × 8 latent pixels around the unit cube, the first ones known."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.zeros(num_samples, num_views, dtype=torch.bool)
    known[:, :num_known] = True
    return ViewRequest(
        scene=Scene.neutral(
            look_at_cameras(num_samples, num_views, seed=seed),
            torch.tensor([[-1.0] * 3, [1.0] * 3]).expand(num_samples, 2, 3),
        ),
        text=torch.randn(num_samples, TEXT_LENGTH, TEXT_CHANNELS, generator=generator),
        empty_text=torch.zeros(TEXT_LENGTH, TEXT_CHANNELS),
        known_latents=torch.randn(num_samples, num_views, LATENT_CHANNELS, 8, 8, generator=generator),
        known=known,
        seeds=tuple(range(10, 10 + num_samples)),
    )
