"""What training needs of the frozen parts, computed once: frames' latents, captions' embeddings, prior samples.

A folder of cached latents holds

    moments-000000.npy ...  [CHUNK_ROWS·K, 2C, h, w] float16: mean and log variance of the latents of K crops of each
                            frame, in the index's order; the first crop is the whole picture
    crops.npy               [N·K, 5] float32: top, left and side in pixels of the stored picture; mean and variance of
                            the crop's intensity
    text-000000.npy ...     [CHUNK_CAPTIONS, L, D] float16: embeddings of the distinct captions, the empty one first
    captions.json           those captions
    prior-000000.npy ...    [CHUNK_PRIOR, C, h, w] float16: scaled latents that the base model made of captions
    latents.json            written last: without it the folder does not count. Counts, the latents' shape, the
                            autoencoder's scaling and shift, and every file's size and digest

Written by writing.py, a file at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from infra.log import Progress
from infra.storage.cache import local_copy
from infra.storage.files import StoragePath, digest_file
from preprocessing.latents.chunks import ChunkedRows, StoredFile
from preprocessing.shards.schema import check_names, unseal

SCHEMA_VERSION = 3
MANIFEST_NAME, CAPTIONS_NAME, CROPS_NAME = "latents.json", "captions.json", "crops.npy"
CHUNK_ROWS, CHUNK_CAPTIONS, CHUNK_PRIOR = 512, 256, 64
CHUNKED = {"moments": CHUNK_ROWS, "text": CHUNK_CAPTIONS, "prior": CHUNK_PRIOR}


class LatentCache:
    """Reader of a folder of cached latents. Rows are the index's rows."""

    def __init__(self, folder: StoragePath) -> None:
        """Open the folder. Raises UserError when it was never completed or is damaged."""
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise UserError(
                f"latents {folder}: no {MANIFEST_NAME}, so it is not complete; run `viewdiff latents` again"
            )
        try:
            self._open(folder, unseal(path.read_bytes(), SCHEMA_VERSION))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"latents {folder}: damaged ({error}); delete it and run `viewdiff latents`") from error

    def _open(self, folder: StoragePath, manifest: dict[str, Any]) -> None:
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"format version {manifest['schema_version']}, this code reads {SCHEMA_VERSION}")
        self._folder = folder
        self._files = [StoredFile(*file) for file in manifest["files"]]
        check_names(folder, (file.name for file in self._files))
        self.scaling_factor: float = manifest["scaling_factor"]
        self.shift_factor: float = manifest["shift_factor"]
        self.latent_shape: tuple[int, ...] = tuple(manifest["latent_shape"])
        """(C, h, w) of the latents of one picture, of a frame and of a prior sample alike."""
        self.num_crops: int = manifest["num_crops"]
        self.smallest_crop: float = manifest["smallest_crop"]
        self.num_prior: int = manifest["num_prior_images"]
        captions = json.loads(self._checked(CAPTIONS_NAME).read_bytes())
        self._caption_numbers = {caption: number for number, caption in enumerate(captions)}
        self._text, self._prior = self._chunks("text"), self._chunks("prior")
        if self.num_crops:
            self._moments = self._chunks("moments", rows_each=self.num_crops)
            crops = np.load(self._checked(CROPS_NAME)).reshape(-1, self.num_crops, 5)
            self._crops, self._intensity = crops[..., :3], crops[..., 3:]
        self._check_shapes()

    def _check_shapes(self) -> None:
        """Raise ValueError when what is stored has another shape than the manifest says."""
        channels, *size = self.latent_shape
        expected = {"prior": (self._prior, (channels, *size))}
        if self.num_crops:
            expected["moments"] = (self._moments, (2 * channels, *size))
        for name, (rows, shape) in expected.items():
            if rows.shape != shape:
                raise ValueError(f"{name}: rows of shape {rows.shape}, the latents' is {shape}")

    @property
    def num_captions(self) -> int:
        """Number of distinct captions, the empty one among them."""
        return len(self._caption_numbers)

    def caption_number(self, caption: str) -> int:
        """Number of a caption of the shards. Raises UserError for any other."""
        if caption not in self._caption_numbers:
            raise UserError(f"latents {self._folder}: no caption {caption!r}; run `viewdiff latents` again")
        return self._caption_numbers[caption]

    def text(self, numbers: np.ndarray | Sequence[int]) -> Tensor:
        """[n, L, D] float16 embeddings of the captions of these numbers; 0 is the empty one."""
        return torch.from_numpy(self._text.take(np.asarray(numbers)))

    def moments(self, rows: np.ndarray, crops: np.ndarray) -> Tensor:
        """[n, 2C, h, w] float16 mean and log variance of the latents of crops [n] of frames [n]."""
        return torch.from_numpy(self._moments.take(rows * self.num_crops + crops))

    def crops(self, rows: np.ndarray, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[n, 3] (top, left, side) in pixels of the stored pictures, and [n, 2] intensity mean and variance."""
        return self._crops[rows, crops], self._intensity[rows, crops]

    def prior(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Scaled latents [n, C, h, w] float16 of prior samples, and their captions' embeddings [n, L, D]."""
        captions = prior_captions(numbers, self.num_captions)
        return torch.from_numpy(self._prior.take(numbers)), self.text(captions)

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents [..., C, h, w] float32 drawn from posteriors [..., 2C, h, w] with `noise` of their shape."""
        mean, log_variance = moments.float().chunk(2, dim=-3)
        return (mean + torch.exp(0.5 * log_variance) * noise - self.shift_factor) * self.scaling_factor

    def verify(self) -> None:
        """Read every file once and compare it with its digest. Copies from an object store were when they were made.

        Raises:
            UserError: one is missing or damaged.
        """
        if not isinstance(self._folder, Path):
            return
        with Progress("latents: digests", total=len(self._files), unit="files") as progress:
            for file in self._files:
                self._checked(file.name)
                progress.advance()

    def _checked(self, name: str) -> Path:
        """A local file of that content, compared with its digest now or when it was copied from a store."""
        file = next(file for file in self._files if file.name == name)
        path = local_copy(self._folder / name, sha256=file.sha256, size=file.num_bytes)
        if isinstance(self._folder, Path) and digest_file(path) != file.sha256:
            raise UserError(f"latents {self._folder}: {name} is damaged; delete the folder and run `viewdiff latents`")
        return path

    def _chunks(self, kind: str, rows_each: int = 1) -> ChunkedRows:
        files = [file for file in self._files if file.name.startswith(f"{kind}-")]
        return ChunkedRows(self._folder, files, chunk_rows=CHUNKED[kind] * rows_each)


def prior_captions(numbers: np.ndarray, num_captions: int) -> np.ndarray:
    """[n] the captions that prior samples are made of: all but the empty one, in turn."""
    return numbers % (num_captions - 1) + 1
