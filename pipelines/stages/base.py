"""Stage base: the pretrained 2D model, a Stable Diffusion that is read or a small stand-in that is trained here.

The stand-in is trained in two phases on the shards' single frames: its autoencoder, then (on the autoencoder's
latents) its U-Net together with its text encoder. Both are resumed from their last snapshot.
"""

from __future__ import annotations

import io
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.log import Progress
from infra.storage.files import StoragePath, atomic_write
from model.base.stable_diffusion import BaseModel, load_base, save_base, scale_latents
from model.base.stand_in import build_tiny_base
from model.config import BaseConfig, FitConfig
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.sources import REVISION_FACT, ROLE, refusing_base, revision_to_read
from preprocessing.shards.reading import FrameIndex, ShardReader

SNAPSHOT_EVERY_SECONDS = 20.0
KL_WEIGHT = 1e-6  # as Stable Diffusion's autoencoder (Rombach et al. 2022, appendix G)
CAPTION_DROPOUT = 0.1  # so that guidance has an unconditional prediction to start from
ENCODE_BATCH = 64
WARMUP_SHARE = 0.05


def train_base(config: BaseConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Write a diffusers folder into `folder`; returns where it comes from and, for the stand-in, its last losses."""
    if config.source is not None:
        revision = revision_to_read(config.source, inputs[ROLE])
        with refusing_base():
            save_base(load_base(config.source, revision=revision), folder)
        return {"source": config.source, REVISION_FACT: revision}
    torch.set_num_threads(os.cpu_count() or 1)  # Ray limits the process of a submitted job to one
    index = inputs["shards"].index(inputs["captions"])
    rows, captions = _training_frames(index)
    images = _read_images(inputs["shards"].data, index, rows)
    base = build_tiny_base(config.tiny, image_size=images.shape[-1], words=_words(captions), seed=config.seed)
    vae_loss = _fit_vae(base, images, config, folder)
    unet_loss = _fit_unet(base, _encode(base, images), captions, config, folder)
    save_base(base, folder)
    for snapshot in folder.glob("*.snapshot"):
        snapshot.unlink()
    return {"source": "stand-in", "images": len(images), "vae_loss": vae_loss, "unet_loss": unet_loss}


def _training_frames(index: FrameIndex) -> tuple[list[int], list[tuple[str, ...]]]:
    """Rows of all training frames, and the captions of each."""
    rows, captions = [], []
    for sequence in index.sequences("train"):
        rows += list(sequence.rows)
        captions += [sequence.captions] * len(sequence.rows)
    return rows, captions


def _read_images(folder: StoragePath, index: FrameIndex, rows: Sequence[int]) -> Tensor:
    """Frames as uint8 [N, 3, H, W]."""
    reader = ShardReader(folder, index)
    return torch.from_numpy(np.stack([reader.image(row) for row in rows])).permute(0, 3, 1, 2).contiguous()


def _words(captions: Sequence[tuple[str, ...]]) -> set[str]:
    return {word for group in set(captions) for caption in group for word in re.findall(r"[a-z]+", caption.lower())}


def _fit_vae(base: BaseModel, images: Tensor, config: BaseConfig, folder: Path) -> float:
    """Train the autoencoder to reconstruct; then set its shift and scale so that latents have mean 0 and variance 1."""

    def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
        pixels = images[batch].float() / 127.5 - 1
        posterior = base.vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        reconstruction = base.vae.decode(posterior.mean + posterior.std * noise).sample
        return F.mse_loss(reconstruction, pixels) + KL_WEIGHT * posterior.kl().mean()

    base.vae.train()
    snapshot = folder / "autoencoder.snapshot"
    final = _fit(base.vae, loss, config=config.vae_fit, num_images=len(images), snapshot=snapshot, seed=config.seed)
    base.vae.eval()
    with torch.no_grad():
        sample = images[:: max(1, len(images) // 512)]
        mean = torch.cat([base.encode_pictures(part).chunk(2, dim=1)[0] for part in sample.split(ENCODE_BATCH)])
    base.vae.register_to_config(shift_factor=mean.mean().item(), scaling_factor=1 / mean.std().item())
    return final


@torch.no_grad()
def _encode(base: BaseModel, images: Tensor) -> Tensor:
    """Mean and log variance of all images' latents [N, 2C, h, w]."""
    return torch.cat([base.encode_pictures(part) for part in images.split(ENCODE_BATCH)])


def _fit_unet(
    base: BaseModel, moments: Tensor, captions: Sequence[tuple[str, ...]], config: BaseConfig, folder: Path
) -> float:
    """Train U-Net and text encoder on single latents with the scheduler's own objective."""
    num_timesteps = base.scheduler.config.num_train_timesteps
    trained = nn.ModuleDict({"unet": base.unet, "text_encoder": base.text_encoder}).train()

    def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_variance = moments[batch].chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
        latents = scale_latents(latents, base.vae)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(num_timesteps, (len(batch),), generator=generator)
        dropped = torch.rand(len(batch), generator=generator) < CAPTION_DROPOUT
        chosen = torch.randint(2**31, (len(batch),), generator=generator)
        text = base.encode_text(
            [
                "" if drop else captions[row][pick % len(captions[row])]
                for row, drop, pick in zip(batch.tolist(), dropped.tolist(), chosen.tolist(), strict=True)
            ]
        )
        noisy = base.scheduler.add_noise(latents, noise, timesteps)
        target = (
            base.scheduler.get_velocity(latents, noise, timesteps)
            if base.scheduler.config.prediction_type == "v_prediction"
            else noise
        )
        return F.mse_loss(base.unet(noisy, timesteps, text).sample, target)

    snapshot = folder / "unet.snapshot"
    final = _fit(
        trained, loss, config=config.unet_fit, num_images=len(moments), snapshot=snapshot, seed=config.seed + 1
    )
    trained.eval()
    return final


def _fit(
    module: nn.Module,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    *,
    config: FitConfig,
    num_images: int,
    snapshot: Path,
    seed: int,
) -> float:
    """Adam on `loss_of(batch rows, generator)`, random as a function of (seed, step) alone. Returns the last loss."""
    optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate)
    first, value = _load_snapshot(snapshot, module, optimizer)
    saved = time.monotonic()
    with Progress(f"base: {snapshot.stem}", total=config.num_steps, unit="steps", done=first) as progress:
        for step in range(first, config.num_steps):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows = torch.randint(num_images, (config.batch_size,), generator=generator)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(step / config.num_steps)
            loss = loss_of(rows, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            value = loss.item()
            if time.monotonic() - saved > SNAPSHOT_EVERY_SECONDS or step + 1 == config.num_steps:
                _save_snapshot(snapshot, module, optimizer, step=step + 1, loss=value)
                saved = time.monotonic()
            progress.advance(loss=value)
    return value


def _schedule(done: float) -> float:
    """Factor on the learning rate after the share `done` of the steps: linear rise, then half a cosine."""
    if done < WARMUP_SHARE:
        return (done + 0.01) / (WARMUP_SHARE + 0.01)
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP_SHARE) / (1 - WARMUP_SHARE))


def _save_snapshot(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, *, step: int, loss: float) -> None:
    buffer = io.BytesIO()
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "loss": loss}
    torch.save(state, buffer)
    atomic_write(path, buffer.getvalue())


def _load_snapshot(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """The step to go on from and the loss before it; (0, nan) without a snapshot."""
    if not path.exists():
        return 0, math.nan
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["loss"]
