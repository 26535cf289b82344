"""Batches of cached latents: a function of the seed and of samples' positions in the run, the same in every process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from model.cameras import Cameras
from model.diffusion import PriorBatch, ViewBatch
from model.views import Scene
from preprocessing.dataset import FrameIndex, ViewChoice, choose_views
from preprocessing.latents import LatentCache

# Keep the streams of random numbers apart from each other and from those of preprocessing.dataset.
_POSTERIOR_STREAM, _PRIOR_STREAM = 3, 4


class ViewBatches:
    """Samples of V views for the main part of the objective, and single images of the base model for the prior part."""

    def __init__(
        self, index: FrameIndex, latents: LatentCache, *, seed: int, num_views: int, split: str = "train"
    ) -> None:
        """Raises UserError when the split has no sequence, or one with fewer than `num_views` frames."""
        self._index, self._latents, self._seed, self._num_views = index, latents, seed, num_views
        self._sequences = index.sequences(split)
        if not self._sequences:
            raise UserError(f"split {split!r} has no sequence; preprocess more captures or change split_fractions")
        shortest = min(self._sequences, key=lambda sequence: len(sequence.rows))
        if len(shortest.rows) < num_views:
            raise UserError(
                f"sequence {shortest.category}/{shortest.sequence} has {len(shortest.rows)} frames, num_views is "
                f"{num_views}; train on fewer views or preprocess with a higher minimum_frames"
            )

    def views(self, positions: Sequence[int]) -> ViewBatch:
        """The B samples at `positions`, on the CPU: latents drawn from the autoencoder's posterior."""
        choices = [
            choose_views(self._sequences, seed=self._seed, position=position, num_views=self._num_views)
            for position in positions
        ]
        latents = [self._draw(choice, position) for choice, position in zip(choices, positions, strict=True)]
        return ViewBatch(
            latents=torch.stack(latents),
            text=torch.stack([self._latents.text(choice.caption) for choice in choices]),
            scene=Scene(
                cameras=Cameras.stack([self._index.cameras(choice.rows) for choice in choices]),
                scene_bounds=torch.from_numpy(np.stack([choice.sequence.scene_bounds for choice in choices])),
                intensity=torch.stack([self._index.intensity(choice.rows) for choice in choices]).float(),
            ).check(),
            positions=tuple(positions),
        )

    def prior(self, positions: Sequence[int]) -> PriorBatch:
        """The B prior samples at `positions`, on the CPU: every one equally likely at each position."""
        numbers = [
            int(np.random.default_rng([_PRIOR_STREAM, self._seed, position]).integers(self._latents.num_prior))
            for position in positions
        ]
        latents, text = zip(*(self._latents.prior(number) for number in numbers), strict=True)
        return PriorBatch(latents=torch.stack(latents), text=torch.stack(text), positions=tuple(positions))

    def _draw(self, choice: ViewChoice, position: int) -> Tensor:
        """Scaled latents [V, C, h, w]."""
        random = np.random.default_rng([_POSTERIOR_STREAM, self._seed, position])
        shape = (len(choice.rows), *self._latents.latent_shape)
        return self._latents.latents(choice.rows, torch.from_numpy(random.standard_normal(shape, dtype=np.float32)))
