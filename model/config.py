"""Settings of the base model.

Nothing that takes seconds to import is imported here, so that the command line can read the settings quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TinyBaseConfig:
    """Sizes of the stand-in for Stable Diffusion. Its latents are [4, image_size / 4, image_size / 4]."""

    image_size: int = 64
    """Side of the images it is made for, pixels; a multiple of 16."""
    vae_channels: tuple[int, ...] = (16, 32, 64)
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
        if self.image_size % 16:
            raise ValueError(f"base: image_size {self.image_size} must be a multiple of 16")
        for channels in self.unet_channels:
            if channels % self.head_channels:
                raise ValueError(
                    f"base: unet_channels {channels} must be a multiple of head_channels {self.head_channels}"
                )


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
    vae_fit: FitConfig = FitConfig(num_steps=300, batch_size=16, learning_rate=2e-3)
    """Training of the stand-in's autoencoder."""
    unet_fit: FitConfig = FitConfig(num_steps=400, batch_size=32, learning_rate=1e-3)
    """Training of the stand-in's U-Net and text encoder."""
    seed: int = 0
    """Seed of the stand-in's weights, batches and noise."""
