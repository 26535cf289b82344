"""A model's captions of one shard's sequences: a file beside the others, committed by a rename, that is not made again.

A shard is described whole, its batches cut in the same places whoever does it, so neither the number of workers nor an
interruption changes a caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from infra.storage.files import StoragePath, atomic_write
from preprocessing.captions.blip2 import Captioner
from preprocessing.captions.files import distinct_captions
from preprocessing.config import CaptionsConfig
from preprocessing.shards.reading import FrameIndex, SequenceRecord, ShardReader
from preprocessing.shards.schema import stable_json

_SUFFIX = ".captions.json"


class ShardCaptioner:
    """A Ray actor that describes shards. The model is loaded once, at the first of them."""

    def __init__(self, *, shards_dir: StoragePath, folder: Path, config: CaptionsConfig, use_gpu: bool) -> None:
        self._shards_dir, self._folder, self._config = shards_dir, folder, config
        self._device = "cuda" if use_gpu else "cpu"

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Describe and commit the shard named `item["shard"]`."""
        captions = self._describe(item["shard"])
        atomic_write(captions_path(self._folder, item["shard"]), stable_json(captions))
        return {"sequences": len(captions)}

    @cached_property
    def _model(self) -> Captioner:
        torch.set_num_threads(1)  # one actor per core; and another number may round sums another way
        assert self._config.source is not None
        return Captioner.from_pretrained(
            self._config.source,
            revision=self._config.revision,
            max_new_tokens=self._config.max_new_tokens,
            device=self._device,
        )

    @cached_property
    def _index(self) -> FrameIndex:
        return FrameIndex.open(self._shards_dir)

    def _describe(self, shard: str) -> dict[str, tuple[str, ...]]:
        """Captions of the shard's sequences, by key."""
        reader = ShardReader(self._shards_dir, self._index)
        sequences = sequences_by_shard(self._index)[shard]
        frames = [(item.key, row) for item in sequences for row in described_rows(item, self._config.num_captions)]
        texts: dict[str, list[str]] = {item.key: [] for item in sequences}
        for start in range(0, len(frames), self._config.batch_size):
            batch = frames[start : start + self._config.batch_size]
            captions = self._model.captions([reader.image(row) for _, row in batch])
            for (key, _), caption in zip(batch, captions, strict=True):
                texts[key].append(caption)
        return {item.key: distinct_captions(texts[item.key], item.category) for item in sequences}


def described_rows(sequence: SequenceRecord, count: int) -> list[int]:
    """Rows of `count` frames, or of all if there are fewer: the middle ones of as many equal parts, because the first
    and the last frame of a turn are alike.
    """
    rows = sequence.rows
    count = min(count, len(rows))
    return [rows[(2 * part + 1) * len(rows) // (2 * count)] for part in range(count)]


def sequences_by_shard(index: FrameIndex) -> dict[str, list[SequenceRecord]]:
    """The sequences of every shard, by the shard's name, both in order."""

    def shard_of(sequence: SequenceRecord) -> str:
        return index.shards[index.shard_numbers[sequence.rows[0]]]

    return {name: list(group) for name, group in groupby(index.sequences(), key=shard_of)}


def captions_path(folder: Path, shard: str) -> Path:
    """Where a described shard's captions lie until all are joined."""
    return folder / f"{Path(shard).stem}{_SUFFIX}"


def join_captions(folder: Path, shards: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The captions of all of these shards, which are described, by sequence."""
    parts: Iterable[dict[str, list[str]]] = (json.loads(captions_path(folder, name).read_bytes()) for name in shards)
    return {key: tuple(texts) for part in parts for key, texts in part.items()}


def remove_parts(folder: Path) -> None:
    """Remove the shards' own files, which a complete folder does not need, and what killed workers left of some."""
    for pattern in (f"*{_SUFFIX}", f".*{_SUFFIX}.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink()
