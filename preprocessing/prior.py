"""Prior-preservation samples: what the base model makes of captions before it is trained on (the paper, section 4)."""

from __future__ import annotations

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from model.base import BaseModel
from preprocessing.config import LatentsConfig


@torch.no_grad()
def sample_prior(
    base: BaseModel, text: Tensor, empty_text: Tensor, config: LatentsConfig, *, first_seed: int
) -> Tensor:
    """Latents [M, C, h, w] of M captions, on the CPU.

    Args:
        base: the model that makes them.
        text: embeddings [M, L, D] of the captions.
        empty_text: embedding [L, D] of the empty caption, for guidance.
        config: steps, guidance, batch size.
        first_seed: seed of the first sample's noise; each next one's is one more.
    """
    parts = [
        _sample(base, text[start : start + config.batch_size], empty_text, config, first_seed=first_seed + start)
        for start in range(0, len(text), config.batch_size)
    ]
    return torch.cat(parts).cpu()


def _sample(base: BaseModel, text: Tensor, empty_text: Tensor, config: LatentsConfig, *, first_seed: int) -> Tensor:
    scheduler = UniPCMultistepScheduler.from_config(base.scheduler.config)
    scheduler.set_timesteps(config.prior_num_steps)
    size, device = base.unet.config.sample_size, base.unet.device
    shape = (base.unet.config.in_channels, size, size)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(first_seed + i)) for i in range(len(text))]
    latents = torch.stack(noise).to(device)
    both = torch.cat([text, empty_text.expand_as(text)])
    for timestep in scheduler.timesteps:
        with_text, without = base.unet(latents.repeat(2, 1, 1, 1), timestep, both).sample.chunk(2)
        prediction = without + config.prior_guidance_scale * (with_text - without)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents
