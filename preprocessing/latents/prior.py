"""Prior-preservation samples: what the base model makes of captions before it is trained on (the paper, section 4).

They stand for what the base model can do, so they are drawn at the size that it was made for: Stable Diffusion 2.1
paints whole objects at 512 pixels, at 256 it paints pieces of them. Then they are scaled to the size of the training's
pictures, as DreamBooth does with its class images (Ruiz et al. 2023), so that the network keeps what it can at the size
that it is trained and used at.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from model.base.stable_diffusion import BaseModel
from preprocessing.config import LatentsConfig
from preprocessing.sequences.images import resize_square


@torch.no_grad()
def sample_prior(
    base: BaseModel, text: Tensor, empty_text: Tensor, config: LatentsConfig, *, image_size: int, first_seed: int
) -> Tensor:
    """Latents [M, C, h, w] of M captions, on the CPU: of pictures of `image_size`² pixels.

    Args:
        base: the model that makes them.
        text: embeddings [M, L, D] of the captions.
        empty_text: embedding [L, D] of the empty caption, for guidance.
        config: steps, guidance, batch size.
        image_size: side of the training's pictures, pixels.
        first_seed: seed of the first sample's noise; each next one's is one more.
    """
    parts = [
        _sample(base, text[start : start + config.batch_size], empty_text, config, first_seed=first_seed + start)
        for start in range(0, len(text), config.batch_size)
    ]
    latents = torch.cat(parts)
    if base.image_size != image_size:
        latents = torch.cat([_scaled(base, sample, image_size) for sample in latents.split(1)])
    return latents.cpu()


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


def _scaled(base: BaseModel, latents: Tensor, image_size: int) -> Tensor:
    """Latents [1, C, h, w] of the picture that `latents` [1, C, h', w'] show, scaled to `image_size`² as frames are.

    One at a time: at 512 pixels the decoder takes gigabytes for each.
    """
    (picture,) = base.decode_pictures(latents)
    scaled = torch.from_numpy(resize_square(np.ascontiguousarray(picture), image_size)).permute(2, 0, 1)
    return base.latents_from_moments(base.encode_pictures(scaled[None]))
