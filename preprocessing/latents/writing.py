"""Writes a folder of cached latents, one unit of work at a time: see reading.py for what is in it.

A unit is one chunk of frames, captions or prior samples. Its files are published first and then its record; a unit
without a record does not count and is done again. What a unit holds depends on nothing but its number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.storage.files import StoragePath, atomic_write
from model.base.stable_diffusion import BaseModel, downsampling
from preprocessing.config import LatentsConfig
from preprocessing.latents.chunks import StoredFile, store_array
from preprocessing.latents.prior import sample_prior
from preprocessing.latents.reading import (
    CAPTIONS_NAME,
    CHUNK_CAPTIONS,
    CHUNK_PRIOR,
    CHUNK_ROWS,
    CROPS_NAME,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    prior_captions,
)
from preprocessing.sequences.crops import cut, draw_crops
from preprocessing.shards.reading import FrameIndex, ShardReader
from preprocessing.shards.schema import stable_json, write_manifest

_RECORD_SUFFIX, _CROPS_PREFIX = ".record.json", "crops-"


@dataclass(frozen=True)
class Unit:
    """A piece of the work: chunk `number` of "text", "prior" or "moments", `size` things from `first` on."""

    kind: str
    number: int
    first: int
    size: int

    def record_path(self, folder: StoragePath) -> StoragePath:
        """Where it says that it is done."""
        return folder / f"{self.kind}-{self.number:06d}{_RECORD_SUFFIX}"


def distinct_captions(index: FrameIndex) -> list[str]:
    """The captions that embeddings are wanted of: the empty one, then all of the shards, sorted."""
    return ["", *sorted({caption for sequence in index.sequences() for caption in sequence.captions})]


def plan_units(index: FrameIndex, config: LatentsConfig) -> list[Unit]:
    """All the work, in an order that tells of a mistake early."""
    frames = len(index) if config.num_crops else 0
    return [
        *_cut("text", len(distinct_captions(index)), CHUNK_CAPTIONS),
        *_cut("prior", config.num_prior_images, CHUNK_PRIOR),
        *_cut("moments", frames, CHUNK_ROWS),
    ]


def _cut(kind: str, total: int, chunk: int) -> list[Unit]:
    return [Unit(kind, i, first, min(chunk, total - first)) for i, first in enumerate(range(0, total, chunk))]


class LatentsWriter:
    """Does units with a base model on its device."""

    def __init__(
        self, base: BaseModel, index: FrameIndex, reader: ShardReader, folder: StoragePath, config: LatentsConfig
    ) -> None:
        self._base, self._index, self._reader, self._folder, self._config = base, index, reader, folder, config
        self._captions = distinct_captions(index)

    @torch.no_grad()
    def write(self, unit: Unit) -> None:
        """Do a unit and record it."""
        numbers = np.arange(unit.first, unit.first + unit.size)
        arrays = {"text": self._embed, "prior": self._sample, "moments": self._encode}[unit.kind](numbers)
        names = {kind: f"{kind}-{unit.number:06d}.npy" for kind in arrays}
        files = [store_array(self._folder, names[kind], array) for kind, array in arrays.items()]
        atomic_write(unit.record_path(self._folder), stable_json({"files": files}))

    def _embed(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        return {"text": _half(self._text(numbers))}

    def _sample(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        text = self._text(prior_captions(numbers, len(self._captions)))
        empty = self._base.encode_text([""])[0]
        first = self._config.seed * self._config.num_prior_images + int(numbers[0])
        size = self._index.image_size
        return {"prior": _half(sample_prior(self._base, text, empty, self._config, image_size=size, first_seed=first))}

    def _encode(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        num_crops, parts, facts = self._config.num_crops, [], []
        pictures: list[np.ndarray] = []
        for row in rows:
            image = self._reader.image(int(row))
            for crop in self._crops(int(row), image.shape[0]):
                part, intensity = cut(image, crop)
                pictures.append(part)
                facts.append([*crop, *intensity])
            if len(pictures) >= self._config.batch_size * num_crops or row == rows[-1]:
                parts.append(_half(self._moments(pictures)))
                pictures = []
        return {"moments": np.concatenate(parts), "crops": np.array(facts, np.float32)}

    def _crops(self, row: int, side: int) -> np.ndarray:
        """[K, 3] the whole picture, then random crops."""
        keys = row * self._config.num_crops + np.arange(1, self._config.num_crops)
        drawn = draw_crops(keys, image_size=side, smallest_share=self._config.smallest_crop, seed=self._config.seed)
        return np.concatenate([[[0, 0, side]], drawn])

    def _moments(self, pictures: list[np.ndarray]) -> Tensor:
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return self._base.encode_pictures(images)

    def _text(self, numbers: np.ndarray) -> Tensor:
        return self._base.encode_text([self._captions[number] for number in numbers])


def commit_latents(folder: StoragePath, index: FrameIndex, config: LatentsConfig, *, vae: Mapping[str, Any]) -> None:
    """Join the units' records into latents.json, which makes the folder count. `vae` is the autoencoder's config."""
    captions = distinct_captions(index)
    records = [json.loads(unit.record_path(folder).read_bytes()) for unit in plan_units(index, config)]
    files = [StoredFile(*file) for record in records for file in record["files"]]
    parts = [np.load((folder / file.name).open("rb")) for file in files if file.name.startswith(_CROPS_PREFIX)]
    kept = [file for file in files if not file.name.startswith(_CROPS_PREFIX)]
    if parts:
        kept.append(store_array(folder, CROPS_NAME, np.concatenate(parts)))
    data = json.dumps(captions, ensure_ascii=False).encode()
    atomic_write(folder / CAPTIONS_NAME, data)
    kept.append(StoredFile(CAPTIONS_NAME, len(data), hashlib.sha256(data).hexdigest()))
    side = index.image_size // downsampling(vae)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "num_frames": len(index),
        "num_crops": config.num_crops,
        "num_captions": len(captions),
        "num_prior_images": config.num_prior_images,
        "smallest_crop": config.smallest_crop,
        "seed": config.seed,
        "latent_shape": [vae["latent_channels"], side, side],
        "scaling_factor": vae["scaling_factor"],
        "shift_factor": vae.get("shift_factor") or 0.0,
        "files": [list(file) for file in kept],
    }
    write_manifest(folder / MANIFEST_NAME, manifest)


def remove_records(folder: StoragePath) -> None:
    """Remove what a complete folder does not need, and what killed workers left half-written."""
    for pattern in (f"*{_RECORD_SUFFIX}", f"{_CROPS_PREFIX}*", ".*.tmp"):
        for path in folder.glob(pattern):
            path.unlink()


def _half(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(np.float16)
