"""Settings of the base model, of what is added to it, of training's draws and of sampling.

Nothing that takes seconds to import is imported here, so that the command line can read the settings quickly.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, get_args

# Metadata of fields that say how a network is computed, not what: infra/provenance/fingerprint.py leaves them out.
HOW = {"identity": False}
STAND_IN_TIMESTEPS = 1000  # steps of the stand-in's noise schedule
Ablation = Literal["projection", "cross_frame", "intensity", "conditioning"]


def expand_home(source: str) -> str:
    """A model's folder, or its id on the hub, with the home folder for `~`."""
    # Path would drop "./", which an id on the hub has not, and end where there is no home.
    return os.path.expanduser(source)  # noqa: PTH111


@dataclass(frozen=True, kw_only=True)
class TinyBaseConfig:
    """Sizes of the stand-in for Stable Diffusion, which is made for pictures of the shards' size. By default a latent
    has an eighth of a picture's side.
    """

    vae_channels: tuple[int, ...] = (16, 32, 64, 64)
    """Channels of the autoencoder's levels; each level after the first halves the side."""
    unet_channels: tuple[int, ...] = (64, 128)
    """Channels of the U-Net's levels."""
    head_channels: int = 32
    """Channels of one attention head."""
    text_channels: int = 64
    """Width of the text encoder."""
    text_length: int = 24
    """Longest caption, tokens."""

    def __post_init__(self) -> None:
        if self.head_channels < 1:
            raise ValueError(f"base: head_channels {self.head_channels} must be at least 1")
        for channels in self.unet_channels:
            if channels % self.head_channels:
                raise ValueError(
                    f"base: unet_channels {channels} must be a multiple of head_channels {self.head_channels}"
                )

    @property
    def side_multiple(self) -> int:
        """Pictures must have sides that are multiples of this many pixels, because autoencoder and U-Net halve them."""
        return 2 ** (len(self.vae_channels) + len(self.unet_channels) - 2)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how one part of the stand-in is trained."""

    num_steps: int
    """Optimizer steps."""
    batch_size: int
    """Images per step."""
    learning_rate: float
    """Peak learning rate; it rises over the first 5 % of the steps and falls along a cosine to zero."""

    def __post_init__(self) -> None:
        if min(self.num_steps, self.batch_size) < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"base: num_steps {self.num_steps}, batch_size {self.batch_size} and "
                f"learning_rate {self.learning_rate} must be positive"
            )


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Where the pretrained 2D text-to-image model comes from."""

    source: str | None = None
    """Diffusers folder or hub id of a Stable Diffusion; without it a small stand-in is trained on the shards."""
    revision: str | None = None
    """Revision on the hub."""
    tiny: TinyBaseConfig = field(default_factory=TinyBaseConfig)
    """Sizes of the stand-in."""
    vae_fit: FitConfig = FitConfig(num_steps=400, batch_size=16, learning_rate=2e-3)
    """Training of the stand-in's autoencoder."""
    unet_fit: FitConfig = FitConfig(num_steps=800, batch_size=32, learning_rate=1e-3)
    """Training of the stand-in's U-Net and text encoder."""
    seed: int = 0
    """Seed of the stand-in's weights, batches and noise."""

    def __post_init__(self) -> None:
        if self.source is not None:
            object.__setattr__(self, "source", expand_home(self.source))


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """Where projection layers sit in a U-Net and what they are made of."""

    blocks: tuple[tuple[str, int], ...]
    """Name of each U-Net block that gets projection layers ("mid_block", "up_blocks.1"), and its voxels per side."""
    merge: Literal["replace", "zero_init"] = "replace"
    """The layer's result replaces its input, or is added to it through a linear layer that starts at zero."""
    background: bool = True
    """Let the volume also hold the space around the scene, contracted."""
    foreground_fraction: float = 0.5
    """Part of each axis of the volume that holds the scene when there is a background, in (0, 1)."""
    disparity_at_infinity: float = 0.5
    """Background rays end at far / this depth, in (0, 1)."""
    num_samples: int = 128
    """Positions on each ray through the scene; with a background as many again behind the scene; at least 2."""
    compress: Literal["conv3x3", "pointwise"] = "conv3x3"
    """Two 3×3 convolutions and a 1×1 (the authors' setting), or one 1×1 convolution (the paper's text)."""
    aggregation: Literal["learned", "mean"] = "learned"
    """A small network weighs the views that see a voxel (learned), or the voxel gets their mean (an ablation)."""
    refine_channels: tuple[int, ...] = (16,)
    """Channels per level of the 3D CNN: one level is one ResNet block, more are a U-Net.
    The first is feature_channels."""
    feature_channels: int = 16
    """Channels of the volume; even."""
    recompute_volumes: bool = field(default=False, metadata=HOW)
    """Compute volumes again in the backward pass instead of keeping them. It saves memory from 64 voxels a side on."""

    def __post_init__(self) -> None:
        for name in ("foreground_fraction", "disparity_at_infinity"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"projection: {name} is {getattr(self, name)}, must lie between 0 and 1")
        if self.merge not in ("replace", "zero_init"):
            raise ValueError(f"projection: merge is {self.merge!r}, must be 'replace' or 'zero_init'")
        if self.compress not in ("conv3x3", "pointwise"):
            raise ValueError(f"projection: compress is {self.compress!r}, must be 'conv3x3' or 'pointwise'")
        if self.aggregation not in ("learned", "mean"):
            raise ValueError(f"projection: aggregation is {self.aggregation!r}, must be 'learned' or 'mean'")
        if self.num_samples < 2:
            raise ValueError(f"projection: num_samples is {self.num_samples}, must be at least 2")
        if self.feature_channels < 2 or self.feature_channels % 2:
            raise ValueError(f"projection: feature_channels is {self.feature_channels}, must be even and positive")
        if not self.refine_channels or self.refine_channels[0] != self.feature_channels:
            raise ValueError(
                f"projection: refine_channels {self.refine_channels} must start with "
                f"feature_channels, {self.feature_channels}"
            )
        names = [name for name, _ in self.blocks]
        if len(set(names)) < len(names):
            raise ValueError(f"projection: blocks {', '.join(names)} must each be named only once")
        divisor = 2 ** (len(self.refine_channels) - 1)
        for name, grid_size in self.blocks:
            # The 3D CNN normalises over space, so its coarsest level needs more than one voxel.
            if grid_size < 2 * divisor or grid_size % divisor:
                raise ValueError(
                    f"projection: {name} has {grid_size} voxels per side, must be a multiple of {divisor} and at least "
                    f"{2 * divisor}, because of refine_channels {self.refine_channels}"
                )


@dataclass(frozen=True, kw_only=True)
class ViewDiffConfig:
    """What is added to the stock U-Net."""

    rank: int = 64
    """Rank of the conditioned low-rank terms of the attention layers."""
    include_self: bool = True
    """A view also attends to its own tokens; False is the paper's equation 1."""
    projection: ProjectionConfig
    """The projection layers."""
    without: tuple[Ablation, ...] = ()
    """Parts to leave out, for ablations: the projection layers; attention across views; a view's intensity, or its
    intensity and its camera, in the attention layers."""
    gradient_checkpointing: bool = field(default=False, metadata=HOW)
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} must be at least 1")
        if isinstance(self.without, str):
            raise ValueError(f"without {self.without!r}: must be a tuple of names")
        unknown = set(self.without) - set(get_args(Ablation))
        if unknown:
            raise ValueError(f"without {sorted(unknown)}: choose from {', '.join(get_args(Ablation))}")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What training draws, and how its parts are weighed."""

    known_view_probability: float = 0.25
    """Probability that view 0 is given clean, and the same for view 1, independently; in [0, 1]."""
    caption_dropout_probability: float = 0.1
    """Probability that the empty caption replaces a sample's caption; in [0, 1]."""
    prior_weight: float = 0.1
    """Weight of the prior preservation part of the loss; 0 or more."""

    def __post_init__(self) -> None:
        for name in ("known_view_probability", "caption_dropout_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must lie in [0, 1]")
        if self.prior_weight < 0:
            raise ValueError(f"prior_weight {self.prior_weight} must not be negative")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How to denoise."""

    num_steps: int = 10
    """Denoising steps of the UniPC sampler."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 switches it off and halves the work."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"sampling: num_steps {self.num_steps} must be at least 1")
        if not self.guidance_scale >= 1:
            raise ValueError(f"sampling: guidance_scale {self.guidance_scale} must be at least 1 (1 = off)")
