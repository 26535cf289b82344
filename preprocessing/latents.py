"""What training needs of the frozen parts, computed once: frames' latents, captions' embeddings, prior samples.

A folder of cached latents holds, each file committed by a rename and kept when the work is resumed:

moments-000000.npy ...  [CHUNK_ROWS, 2C, h, w] float16, mean and log variance of frames' latents in the index's order
text.safetensors        embeddings [N, L, D] of the distinct captions, the empty one first
captions.json           those captions
prior.safetensors       latents [M, C, h, w] that the base model made of captions, and each one's caption number [M]
latents.json            written last: counts, scaling and shift of the latents
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from infra.errors import UserError
from infra.log import Progress
from infra.storage import atomic_write
from model.base import BaseModel
from preprocessing.config import LatentsConfig
from preprocessing.dataset import FrameIndex, ShardReader
from preprocessing.prior import sample_prior

CHUNK_ROWS = 512
MANIFEST_NAME = "latents.json"


class LatentCache:
    """Reader of a folder of cached latents. Rows are the index's rows."""

    def __init__(self, folder: Path) -> None:
        """Open the folder. Raises UserError when it was never completed or is damaged."""
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise UserError(
                f"latents {folder}: no {MANIFEST_NAME}, so it is not complete; run `viewdiff latents` again"
            )
        try:
            self._open(folder, json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"latents {folder}: damaged ({error}); delete it and run `viewdiff latents`") from error

    def _open(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.scaling_factor: float = manifest["scaling_factor"]
        self.shift_factor: float = manifest["shift_factor"]
        self._chunks = [np.load(folder / _chunk_name(i), mmap_mode="r") for i in range(manifest["num_chunks"])]
        captions = json.loads((folder / "captions.json").read_bytes())
        self._caption_numbers = {caption: number for number, caption in enumerate(captions)}
        self._text = safetensors.torch.load_file(folder / "text.safetensors")["embeddings"]
        prior = safetensors.torch.load_file(folder / "prior.safetensors")
        self._prior, self._prior_captions = prior["latents"], prior["captions"]

    @property
    def empty_text(self) -> Tensor:
        """[L, D] embedding of the empty caption."""
        return self._text[0]

    def text(self, caption: str) -> Tensor:
        """[L, D] embedding of a caption of the shards. Raises KeyError for any other."""
        return self._text[self._caption_numbers[caption]]

    def latents(self, rows: Sequence[int], noise: Tensor) -> Tensor:
        """Scaled latents [n, C, h, w] of frames, drawn from the autoencoder's posterior with `noise` [n, C, h, w]."""
        moments = torch.from_numpy(np.stack([self._chunks[row // CHUNK_ROWS][row % CHUNK_ROWS] for row in rows]))
        mean, log_variance = moments.float().chunk(2, dim=1)
        return (mean + torch.exp(0.5 * log_variance) * noise - self.shift_factor) * self.scaling_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one frame's latents."""
        _, channels, height, width = self._chunks[0].shape
        return channels // 2, height, width

    @property
    def num_prior(self) -> int:
        """Number of prior samples."""
        return len(self._prior)

    def prior(self, number: int) -> tuple[Tensor, Tensor]:
        """Scaled latents [C, h, w] of a prior sample, and its caption's embedding [L, D]."""
        return self._prior[number], self._text[self._prior_captions[number]]


@torch.no_grad()
def write_latents(
    index: FrameIndex, reader: ShardReader, base: BaseModel, folder: Path, config: LatentsConfig
) -> dict[str, int]:
    """Fill `folder`, going on where an earlier run stopped; returns counts."""
    captions = ["", *sorted({caption for sequence in index.sequences() for caption in sequence.captions})]
    text = torch.cat([base.encode_text(captions[i : i + 64]) for i in range(0, len(captions), 64)])
    _write_moments(index, reader, base, folder, config.batch_size)
    _save_tensors(folder / "text.safetensors", embeddings=text)
    atomic_write(folder / "captions.json", json.dumps(captions, ensure_ascii=False).encode())
    if not (folder / "prior.safetensors").exists():
        numbers = torch.arange(config.num_prior_images) % (len(captions) - 1) + 1
        _save_tensors(
            folder / "prior.safetensors",
            latents=sample_prior(base, text[numbers], text[0], config),
            captions=numbers,
        )
    counts = {"num_frames": len(index), "num_captions": len(captions), "num_prior_images": config.num_prior_images}
    manifest = counts | {
        "num_chunks": _num_chunks(index),
        "scaling_factor": base.vae.config.scaling_factor,
        "shift_factor": base.vae.config.shift_factor or 0.0,
    }
    atomic_write(folder / MANIFEST_NAME, json.dumps(manifest, indent=1).encode())
    return counts


def _write_moments(index: FrameIndex, reader: ShardReader, base: BaseModel, folder: Path, batch_size: int) -> None:
    missing = [number for number in range(_num_chunks(index)) if not (folder / _chunk_name(number)).exists()]
    done = (_num_chunks(index) - len(missing)) * CHUNK_ROWS
    with Progress("latents: frames", total=len(index), unit="frames", done=min(done, len(index))) as progress:
        for number in missing:
            rows = range(number * CHUNK_ROWS, min((number + 1) * CHUNK_ROWS, len(index)))
            parts = []
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                images = torch.from_numpy(np.stack([reader.image(row) for row in batch])).permute(0, 3, 1, 2)
                moments = base.encode_moments(images.to(base.vae.device).float() / 255)
                parts.append(moments.cpu().numpy().astype(np.float16))
                progress.advance(len(batch))
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate(parts))
            atomic_write(folder / _chunk_name(number), buffer.getvalue())


def _num_chunks(index: FrameIndex) -> int:
    return -(-len(index) // CHUNK_ROWS)


def _chunk_name(number: int) -> str:
    return f"moments-{number:06d}.npy"


def _save_tensors(path: Path, **tensors: Tensor) -> None:
    atomic_write(path, safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))
