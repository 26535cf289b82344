"""Stage latents: everything that training needs of the frozen autoencoder, text encoder and base U-Net, cached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.base import load_base
from pipelines.runtime import RuntimeConfig
from preprocessing.captions import read_sequence_captions
from preprocessing.config import LatentsConfig
from preprocessing.dataset import FrameIndex, ShardReader
from preprocessing.latents import write_latents


def cache_latents(
    config: LatentsConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig
) -> dict[str, Any]:
    """Write the cache of the shards under the base model into `folder`; returns its counts."""
    shards = inputs["shards"].folder
    index = FrameIndex.open(shards).with_captions(read_sequence_captions(inputs["captions"].folder))
    base = load_base(inputs["base"].folder).frozen().to("cuda" if runtime.use_gpu else "cpu")
    counts = write_latents(index, ShardReader(shards, index), base, folder, config)
    if runtime.use_gpu:
        base.to("cpu")
        torch.cuda.empty_cache()  # a training worker may get the same card
    return dict(counts)
