"""Batches of a training: a function of the seed and of samples' positions in the run, the same in every process.

A batch is loaded in two halves. `TrainBatches.load` gathers what is stored, posed views and prior images together, as
fast as memory can be copied; it runs where there is time, in a worker process of the loader. `TrainBatches.views` and
`.prior` turn that into what the objective takes, on the device that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.base.stable_diffusion import BaseModel
from model.cameras import Cameras
from model.chance import uniform
from model.diffusion.objective import PriorBatch, ViewBatch
from model.layers.views import Scene, to_device
from preprocessing.batches.order import ViewChoice, ViewOrder
from preprocessing.latents.reading import LatentCache
from preprocessing.sequences.crops import crop_intrinsics, cut, draw_crops
from preprocessing.shards.reading import FrameIndex, ShardReader

# Keeps its stream of random numbers apart from model.diffusion.objective's, which draws for the same positions.
_POSTERIOR_STREAM = 3


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """B samples of V views and B prior images as they are stored, on the CPU."""

    positions: tuple[int, ...]  # of the samples in the run
    frames: Tensor  # [B, V, 2C, h, w] float16 moments of the views' latents, or [B, V, 3, H, W] uint8 pictures
    text: Tensor  # [B, L, D] float16 caption embeddings
    scene: Scene
    prior: Tensor  # [B, C, h, w] float16 scaled latents
    prior_text: Tensor  # [B, L, D] float16


class TrainBatches:
    """The samples of a run."""

    def __init__(
        self,
        index: FrameIndex,
        reader: ShardReader,
        latents: LatentCache,
        *,
        seed: int,
        num_views: int,
        split: str = "train",
    ) -> None:
        """Raises UserError when the split has no sequence, or one with fewer than `num_views` frames, or a caption that
        is not in the cache.
        """
        self.index, self._reader, self.latents, self._seed = index, reader, latents, seed
        self.order = ViewOrder(index.sequences(split), seed=seed, num_views=num_views)
        sequences = self.order.sequences
        self._bounds = torch.from_numpy(np.stack([sequence.scene_bounds for sequence in sequences]))
        self._captions = _Ragged([[latents.caption_number(text) for text in item.captions] for item in sequences])

    def load(self, positions: Sequence[int]) -> LoadedBatch:
        """The B samples at `positions`."""
        choice = self.order.choose(np.asarray(positions, dtype=np.int64))
        frames, scene = self.gather(choice)
        numbers = uniform("prior", self._seed, choice.positions, 1)[:, 0] * self.latents.num_prior
        prior, prior_text = self.latents.prior(numbers.astype(np.int64))
        return LoadedBatch(
            positions=tuple(choice.positions.tolist()),
            frames=frames,
            text=self.latents.text(self._captions.take(choice.sequences, choice.captions)),
            scene=scene,
            prior=prior,
            prior_text=prior_text,
        )

    def names(self, positions: Sequence[int]) -> list[str]:
        """The sequences that the samples at `positions` are of, `category/sequence`, each once."""
        visited = self.order.choose(np.asarray(positions, dtype=np.int64)).sequences.tolist()
        sequences = (self.order.sequences[number] for number in dict.fromkeys(visited))
        return [f"{sequence.category}/{sequence.sequence}" for sequence in sequences]

    def gather(self, choice: ViewChoice) -> tuple[Tensor, Scene]:
        """Stored frames (see `LoadedBatch.frames`) and the scene of the views of B samples."""
        num_samples, num_views = choice.rows.shape
        frames, cameras, intensity = self._cached(choice) if self.latents.num_crops else self._pictures(choice)
        scene = Scene(
            cameras=cameras,
            scene_bounds=self._bounds[choice.sequences],
            intensity=torch.from_numpy(intensity).reshape(num_samples, num_views, 2),
        )
        return frames.unflatten(0, (num_samples, num_views)), scene

    def _cached(self, choice: ViewChoice) -> tuple[Tensor, Cameras, np.ndarray]:
        """Moments [B·V, ...], cameras [B, V] and intensity [B·V, 2] of one crop of each view, drawn by
        position.
        """
        rows, latents = choice.rows.reshape(-1), self.latents
        chances = uniform("crop of a view", self._seed, choice.positions, choice.rows.shape[1])
        crops = (chances * latents.num_crops).astype(np.int64).reshape(-1)
        boxes, intensity = latents.crops(rows, crops)
        return latents.moments(rows, crops), self._cameras(choice.rows, boxes), intensity

    def _pictures(self, choice: ViewChoice) -> tuple[Tensor, Cameras, np.ndarray]:
        """The same with pictures [B·V, 3, H, W] uint8, of crops that are drawn anew for each position."""
        rows, num_views = choice.rows.reshape(-1), choice.rows.shape[1]
        boxes = draw_crops(
            (choice.positions[:, None] * num_views + np.arange(num_views)).reshape(-1),
            image_size=self.index.image_size,
            smallest_share=self.latents.smallest_crop,
            seed=self._seed,
        )
        parts = [cut(self._reader.image(int(row)), box) for row, box in zip(rows, boxes, strict=True)]
        images = torch.from_numpy(np.stack([image for image, _ in parts])).permute(0, 3, 1, 2)
        return images, self._cameras(choice.rows, boxes), np.array([intensity for _, intensity in parts], np.float32)

    def _cameras(self, rows: np.ndarray, boxes: np.ndarray) -> Cameras:
        """Of crops [B·V, 3] of frames [B, V]."""
        world_to_camera, intrinsics = self.index.matrices(rows)
        size = self.index.image_size
        cropped = crop_intrinsics(intrinsics, boxes.reshape(*rows.shape, 3), size)
        return Cameras(torch.from_numpy(world_to_camera), torch.from_numpy(cropped), (size, size))

    def views(self, batch: LoadedBatch, device: torch.device, base: BaseModel | None = None) -> ViewBatch:
        """Posed views on `device`, latents drawn from the autoencoder's posterior; pictures are encoded by `base`,
        which is on that device.
        """
        frames = to_device(batch.frames, device)
        if frames.dtype == torch.uint8:
            moments = _encode(frames.flatten(0, 1), base).unflatten(0, frames.shape[:2])
        else:
            moments = frames
        num_views, num_channels, *size = moments.shape[1:]
        shape = (num_views, num_channels // 2, *size)  # half of the channels are means, half variances
        noise = torch.stack([_posterior_noise(self._seed, position, shape) for position in batch.positions])
        return ViewBatch(
            latents=self.latents.latents(moments, to_device(noise, device)),
            text=to_device(batch.text, device).float(),
            scene=batch.scene.to(device),
            positions=batch.positions,
        )

    def prior(self, batch: LoadedBatch, device: torch.device) -> PriorBatch:
        """The batch's single images of the base model, on `device`."""
        return PriorBatch(
            latents=to_device(batch.prior, device).float(),
            text=to_device(batch.prior_text, device).float(),
            positions=batch.positions,
        )

    def mean_latents(self, rows: Sequence[int], base: BaseModel | None) -> Tensor:
        """Scaled latents [n, C, h, w] of whole frames, the means of their posteriors. `base` as `views`."""
        if self.latents.num_crops:
            moments = self.latents.moments(np.asarray(rows), np.zeros(len(rows), np.int64))
        else:
            images = torch.from_numpy(np.stack([self._reader.image(row) for row in rows])).permute(0, 3, 1, 2)
            moments = _encode(images, base)
        return self.latents.latents(moments, torch.zeros(len(rows), *self.latents.latent_shape, device=moments.device))


@torch.no_grad()
def _encode(images: Tensor, base: BaseModel | None) -> Tensor:
    """Moments [n, 2C, h, w] of pictures [n, 3, H, W] uint8."""
    assert base is not None, "pictures need an encoder"
    return base.encode_pictures(images)


class _Ragged:
    """Lists of integers of different lengths, looked up by whole arrays."""

    def __init__(self, lists: list[list[int]]) -> None:
        self._starts = np.cumsum([0, *(len(values) for values in lists)])[:-1]
        self._values = np.array([value for values in lists for value in values])

    def take(self, lists: np.ndarray, places: np.ndarray) -> np.ndarray:
        return self._values[self._starts[lists] + places]


def _posterior_noise(seed: int, position: int, shape: tuple[int, ...]) -> Tensor:
    random = np.random.default_rng([_POSTERIOR_STREAM, seed, position])
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
