"""The training objective: noising, known views, the loss of its two parts (the paper, section 3.2).

The loss of a global batch is the mean over its samples of each sample's mean squared error over its novel views. Each
function here returns its samples' share of it, that is their sum divided by the *global* number of samples: **the sum**
over micro-batches and ranks is the batch's loss, however it was cut. An engine that averages over ranks or accumulation
steps must be told so, or compensated, by the caller.

All randomness of a sample comes from generators seeded by (seed, position) alone, on the CPU: it depends on no rank,
batch split or device.

Shape letters: B samples, V views, C latent channels, h × w latent pixels, L text tokens, D text channels.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from model.cameras import Cameras
from model.config import DiffusionConfig
from model.layers.views import Scene, to_device
from model.trajectories import OrbitConfig, orbit

# From this many views on the projection layers must render a last view that their volume has not seen.
MIN_VIEWS_TO_HIDE_ONE = 3
# Prior images show no known pose: each gets a random one of these, at most this high above the horizon.
NUM_PRIOR_AZIMUTHS = 72
MAX_PRIOR_ELEVATION_DEGREES = 45.0
NUM_QUARTERS = 4  # of the timesteps, in which losses are told apart


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """B samples of V posed views."""

    latents: Tensor  # [B, V, C, h, w] clean, scaled
    text: Tensor  # [B, L, D] caption embeddings
    scene: Scene  # with each view's own intensity
    positions: tuple[int, ...]  # of the samples in the training run


@dataclass(frozen=True, eq=False)
class PriorBatch:
    """B single images of the base model."""

    latents: Tensor  # [B, C, h, w] clean, scaled
    text: Tensor  # [B, L, D] their captions' embeddings
    positions: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Draws:
    """What chance decides about B samples of V views, on the CPU."""

    timesteps: Tensor  # [B] one per sample, shared by its novel views
    known: Tensor  # [B, V] bool: views given clean, outside of the loss
    drop_caption: Tensor  # [B] bool
    noise: Tensor  # [B, V, C, h, w]
    opacity_noise_seeds: Tensor  # [B] int64


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """What is the same for every batch of a run."""

    scheduler: DDPMScheduler  # of the base model: noise schedule and kind of prediction
    empty_text: Tensor  # [L, D] embedding of the empty caption
    config: DiffusionConfig
    seed: int
    global_batch_size: int  # samples of a whole step, over all ranks and micro-batches


class PartLoss(NamedTuple):
    """One part of the objective: this batch's share of the step's loss."""

    loss: Tensor  # scalar, weighted: add up and call backward
    scalars: dict[str, Tensor]
    """Detached, unweighted; add them up over micro-batches and ranks like the loss. A mean that the batch has only a
    part of comes as two: `<name>/sum` and `<name>/count`."""


def draw(
    seed: int,
    *,
    positions: Sequence[int],
    latent_shape: tuple[int, int, int, int],
    num_timesteps: int,
    config: DiffusionConfig,
    stream: str = "views",
) -> Draws:
    """Draw for the samples at `positions`, latents of shape (V, C, h, w), timesteps in [0, num_timesteps).

    The last view is never made known, since the projection layers take the volume's noise level from it: of two views
    only view 0 can be known, a single one never is. `stream` keeps the parts of the objective independent.
    """
    num_views = latent_shape[0]
    rows = []
    for position in positions:
        generator = _generator(seed, position, stream)
        chances = torch.rand(3, generator=generator)
        known = torch.zeros(num_views, dtype=torch.bool)
        candidates = min(2, num_views - 1)
        known[:candidates] = chances[:candidates] < config.known_view_probability
        timestep = torch.randint(num_timesteps, (), generator=generator)
        opacity_seed = torch.randint(2**62, (), generator=generator)
        noise = torch.randn(latent_shape, generator=generator)
        rows.append((timestep, known, chances[2] < config.caption_dropout_probability, noise, opacity_seed))
    timesteps, known_views, drop_caption, noises, opacity_seeds = zip(*rows, strict=True)
    return Draws(
        timesteps=torch.stack(timesteps),
        known=torch.stack(known_views),
        drop_caption=torch.stack(drop_caption),
        noise=torch.stack(noises),
        opacity_noise_seeds=torch.stack(opacity_seeds),
    )


def view_loss(unet: nn.Module, batch: ViewBatch, objective: Objective) -> PartLoss:
    """The main part, on posed views; `unet` is a ViewDiffUNet or an engine around one."""
    draws = draw(
        objective.seed,
        positions=batch.positions,
        latent_shape=_shape_per_sample(batch.latents),
        num_timesteps=objective.scheduler.config.num_train_timesteps,
        config=objective.config,
    )
    per_sample = sample_losses(unet, batch, draws=draws, scheduler=objective.scheduler, empty_text=objective.empty_text)
    loss = per_sample.sum() / objective.global_batch_size
    return PartLoss(loss, {"view_loss": loss.detach()} | _by_timestep(per_sample.detach(), draws, objective))


def prior_loss(unet: nn.Module, batch: PriorBatch, objective: Objective) -> PartLoss:
    """Prior preservation: the same loss on single images of the base model, weighted by `prior_weight`.

    Each image is taken for a view from a random pose around the unit cube, with the neutral intensity of generation. It
    keeps its caption.
    """
    height, width = batch.latents.shape[-2:]
    views = ViewBatch(
        latents=batch.latents[:, None],
        text=batch.text,
        scene=_prior_scene(objective.seed, batch.positions, image_size=(height, width)).to(batch.latents.device),
        positions=batch.positions,
    )
    draws = draw(
        objective.seed,
        positions=batch.positions,
        latent_shape=_shape_per_sample(views.latents),
        num_timesteps=objective.scheduler.config.num_train_timesteps,
        config=dataclasses.replace(objective.config, caption_dropout_probability=0.0),
        stream="prior",
    )
    loss = denoising_loss(unet, views, draws=draws, objective=objective)
    return PartLoss(objective.config.prior_weight * loss, {"prior_loss": loss.detach()})


def denoising_loss(unet: nn.Module, batch: ViewBatch, *, draws: Draws, objective: Objective) -> Tensor:
    """The batch's share (see above) of the squared error, a scalar; `sample_losses` says what that is."""
    per_sample = sample_losses(unet, batch, draws=draws, scheduler=objective.scheduler, empty_text=objective.empty_text)
    return per_sample.sum() / objective.global_batch_size


def sample_losses(
    unet: nn.Module, batch: ViewBatch, *, draws: Draws, scheduler: DDPMScheduler, empty_text: Tensor
) -> Tensor:
    """Mean squared error of the prediction over the novel views of each sample, [B].

    Known views are given clean at timestep 0 and count neither in the error nor in its divisor. Raises ValueError if a
    sample knows all its views, or the scheduler predicts neither noise nor velocity.
    """
    if bool(draws.known.all(dim=1).any()):
        raise ValueError("diffusion: all views of a sample are known; leave at least one for the loss")
    latents, device = batch.latents, batch.latents.device
    num_views = latents.shape[1]
    noise, known = to_device(draws.noise, device), to_device(draws.known, device)
    timesteps = to_device(draws.timesteps, device)[:, None].expand(-1, num_views)
    noisy, target = _noise(scheduler, latents, noise=noise, timesteps=timesteps)
    prediction = unet(
        torch.where(known[:, :, None, None, None], latents, noisy),
        timesteps.masked_fill(known, 0),
        text=torch.where(to_device(draws.drop_caption, device)[:, None, None], empty_text.to(batch.text), batch.text),
        scene=batch.scene,
        hidden_views=1 if num_views >= MIN_VIEWS_TO_HIDE_ONE else 0,
        opacity_noise_seeds=to_device(draws.opacity_noise_seeds, device),
    )
    error = (prediction.float() - target.float()).square().mean(dim=(2, 3, 4))  # [B, V]
    novel = (~known).to(error.dtype)
    return (error * novel).sum(dim=1) / novel.sum(dim=1)


def _by_timestep(per_sample: Tensor, draws: Draws, objective: Objective) -> dict[str, Tensor]:
    """Sums and counts of sample losses [B] in each quarter of the timesteps: quarter 1 has the least noise."""
    quarters = draws.timesteps * NUM_QUARTERS // objective.scheduler.config.num_train_timesteps
    member = (quarters[:, None] == torch.arange(NUM_QUARTERS)).to(per_sample.dtype)  # [B, quarters]
    member = to_device(member, per_sample.device)
    sums, counts = per_sample @ member, member.sum(dim=0)
    scalars: dict[str, Tensor] = {}
    for quarter in range(NUM_QUARTERS):
        name = f"view_loss_quarter_{quarter + 1}"
        scalars |= {f"{name}/sum": sums[quarter], f"{name}/count": counts[quarter]}
    return scalars


def _noise(scheduler: DDPMScheduler, latents: Tensor, *, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and what the network must predict, [B, V, C, h, w] each; timesteps [B, V]."""
    flat = (latents.flatten(0, 1), noise.flatten(0, 1), timesteps.flatten())
    noisy = scheduler.add_noise(*flat).view_as(latents)
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noisy, noise
    if prediction_type == "v_prediction":
        return noisy, scheduler.get_velocity(*flat).view_as(latents)
    raise ValueError(f"scheduler: prediction_type {prediction_type!r} must be 'epsilon' or 'v_prediction'")


def _prior_scene(seed: int, positions: Sequence[int], *, image_size: tuple[int, int]) -> Scene:
    """One camera per sample, [B, 1], that looks at the unit cube from a random direction above the horizon."""
    cameras = []
    for position in positions:
        height, azimuth = torch.rand(2, generator=_generator(seed, position, "prior pose")).tolist()
        circle = OrbitConfig(elevation_degrees=height * MAX_PRIOR_ELEVATION_DEGREES)
        index = int(azimuth * NUM_PRIOR_AZIMUTHS)
        cameras.append(orbit(NUM_PRIOR_AZIMUTHS, image_size=image_size, config=circle)[index : index + 1])
    bounds = torch.tensor([[-1.0] * 3, [1.0] * 3]).expand(len(positions), 2, 3)
    return Scene.neutral(Cameras.stack(cameras), bounds)


def _generator(seed: int, position: int, stream: str) -> torch.Generator:
    digest = hashlib.sha256(f"{stream}:{seed}:{position}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _shape_per_sample(latents: Tensor) -> tuple[int, int, int, int]:
    _, V, C, height, width = latents.shape
    return V, C, height, width
