"""Settings of the synthetic data set, of preprocessing, of captions and of the latents' cache.

Nothing that takes seconds to import is imported here, so that the command line can read the settings quickly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from infra.errors import UserError
from model.config import expand_home


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What is taken from a CO3Dv2 root, and how it is stored."""

    categories: tuple[str, ...] = ()
    """Categories to take; without it all categories of the captures."""
    subset: str | None = None
    """Name of a subset, such as fewview_train or manyview_dev_0: take only the sequences that its set lists name, and
    its splits. Without it all sequences, and the splits of all subsets."""
    image_size: int = 256
    """Side of the stored square pictures, pixels."""
    sequences_per_shard: int = 32
    """Sequences per shard. Rejected sequences leave their places empty."""
    minimum_frames: int = 10
    """A sequence with fewer usable frames is rejected."""
    minimum_viewpoint_quality: float | None = None
    """A sequence is rejected if its cameras' quality score is lower than this, or unknown; without a value scores do
    not matter."""
    minimum_point_cloud_quality: float | None = None
    """A sequence is rejected if its point cloud's quality score is lower than this, or unknown; without a value scores
    do not matter."""
    minimum_coverage_degrees: float = 0.0
    """A sequence is rejected if its cameras cover less of the turn around the object: 360 degrees without the largest
    gap between two neighbouring cameras; in [0, 360)."""
    maximum_epipolar_pixels: float | None = None
    """A sequence is rejected if its pictures disagree more with their cameras: the median distance of matches between
    neighbouring frames from their epipolar lines. Without a value nothing is measured; measuring takes a second for
    ten frames."""
    minimum_image_side: int = 1
    """A frame is dropped if a side of the raw image has fewer pixels."""
    minimum_mask_share: float = 0.0
    """A frame is dropped if its mask covers a smaller share of the stored picture; in [0, 1)."""
    minimum_sharpness: float = 0.0
    """A frame is dropped as blurred if the Laplacian of the stored picture (grey levels in [0, 255]) has a lower
    variance. A sharp photo has hundreds."""
    split_fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)
    """Shares of train, val and test among the sequences for which the set lists do not decide."""

    def __post_init__(self) -> None:
        least = {"image_size": 8, "sequences_per_shard": 1, "minimum_frames": 1, "minimum_image_side": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UserError(f"preprocess: {name} is {getattr(self, name)}, must be at least {smallest}")
        ends = {"minimum_coverage_degrees": 360, "minimum_mask_share": 1, "minimum_sharpness": math.inf}
        for name, end in ends.items():
            if not 0 <= getattr(self, name) < end:
                raise UserError(f"preprocess: {name} is {getattr(self, name)}, must be at least 0 and below {end}")
        if self.maximum_epipolar_pixels is not None and not self.maximum_epipolar_pixels > 0:
            raise UserError(f"preprocess: maximum_epipolar_pixels is {self.maximum_epipolar_pixels}, must be positive")
        if min(self.split_fractions) < 0 or abs(sum(self.split_fractions) - 1) > 1e-6:
            raise UserError(f"preprocess: split_fractions {self.split_fractions} must not be negative and sum to 1")


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """Where captions come from."""

    source: str | None = None
    """Folder or hub id of a BLIP-2 that describes the frames; without it the captions in the shards are taken."""
    revision: str | None = None
    """Revision on the hub."""
    num_captions: int = 5
    """Frames of a sequence to describe, evenly spread; equal captions count once."""
    batch_size: int = 16
    """Frames to describe at a time."""
    max_new_tokens: int = 30
    """Most tokens of a caption."""

    def __post_init__(self) -> None:
        for name in ("num_captions", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"captions: {name} is {getattr(self, name)}, must be at least 1")
        if self.source is not None:
            object.__setattr__(self, "source", expand_home(self.source))


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """What is cached of the frozen base model before training."""

    num_crops: int = 1
    """Crops of each frame to encode: the whole frame, then random crops. With 0 nothing is encoded; training reads the
    pictures and encodes random crops itself."""
    smallest_crop: float = 0.8
    """Side of the smallest random crop, as a share of the picture's; in (0, 1]."""
    batch_size: int = 32
    """Pictures to encode at a time."""
    num_prior_images: int = 300
    """Samples to draw from the base model for prior preservation."""
    prior_num_steps: int = 20
    """Denoising steps of a prior sample."""
    prior_guidance_scale: float = 7.5
    """Classifier-free guidance of a prior sample."""
    seed: int = 0
    """Seed of the crops and of the prior samples' noise."""

    def __post_init__(self) -> None:
        least = {"num_crops": 0, "batch_size": 1, "num_prior_images": 1, "prior_num_steps": 1, "seed": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UserError(f"latents: {name} is {getattr(self, name)}, must be at least {smallest}")
        if not 0 < self.smallest_crop <= 1:
            raise UserError(f"latents: smallest_crop is {self.smallest_crop}, must be above 0 and at most 1")
