"""Settings of preprocessing."""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What is taken from a CO3Dv2 root, and how it is stored."""

    categories: tuple[str, ...] = ()
    """Categories to take; none named means all in the root."""
    image_size: int = 256
    """Side of the stored square pictures, pixels."""
    sequences_per_shard: int = 32
    """Sequences that one shard is planned from; it holds those of them that turn out usable."""
    minimum_frames: int = 10
    """A sequence with fewer usable frames is rejected."""
    minimum_viewpoint_quality: float | None = None
    """A sequence whose cameras' quality score is lower, or unknown, is rejected; without a value none is."""
    split_fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)
    """Shares of train, val and test among the sequences that the set lists do not put wholly into one of them."""

    def __post_init__(self) -> None:
        for name, smallest in (("image_size", 8), ("sequences_per_shard", 1), ("minimum_frames", 1)):
            if getattr(self, name) < smallest:
                raise UserError(f"preprocess: {name} is {getattr(self, name)}, must be at least {smallest}")
        if min(self.split_fractions) < 0 or abs(sum(self.split_fractions) - 1) > 1e-6:
            raise UserError(f"preprocess: split_fractions {self.split_fractions} must not be negative and sum to 1")


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """What is cached of the frozen base model before training."""

    batch_size: int = 32
    """Images at a time."""
    num_prior_images: int = 300
    """Samples of the base model for prior preservation."""
    prior_num_steps: int = 20
    """Denoising steps of such a sample."""
    prior_guidance_scale: float = 7.5
    """Classifier-free guidance of such a sample."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_prior_images", "prior_num_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"latents: {name} is {getattr(self, name)}, must be at least 1")
