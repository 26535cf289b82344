"""Stage latents: everything that training needs of the frozen autoencoder, text encoder and base U-Net, cached by Ray
actors that each hold the base model.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from infra.cluster.tasks import run_actors
from infra.errors import UserError
from infra.log import Progress
from infra.storage.files import StoragePath
from model.base.stable_diffusion import load_base
from pipelines.spine.runtime import RuntimeConfig
from preprocessing.captions.files import read_sequence_captions
from preprocessing.config import LatentsConfig
from preprocessing.latents.reading import MANIFEST_NAME, LatentCache
from preprocessing.latents.writing import LatentsWriter, commit_latents, plan_units, remove_records
from preprocessing.shards.reading import FrameIndex, ShardReader


def cache_latents(
    config: LatentsConfig, inputs: Mapping[str, Any], folder: StoragePath, runtime: RuntimeConfig
) -> dict[str, Any]:
    """Write the cache of the shards under the base model into `folder`, going on where an earlier run stopped; returns
    its counts.
    """
    shards, base_dir = inputs["shards"].data, inputs["base"].folder
    captions = read_sequence_captions(inputs["captions"].folder)
    index = FrameIndex.open(shards).with_captions(captions)
    if not (folder / MANIFEST_NAME).is_file():
        settings = {"base_dir": base_dir, "shards": shards, "captions": captions, "config": config}
        _run_units(index, folder, settings, runtime)
    if not (folder / MANIFEST_NAME).is_file():  # not even by a run on another machine, with its data in the same place
        commit_latents(folder, index, config, vae=AutoencoderKL.load_config(base_dir, subfolder="vae"))
    remove_records(folder)
    cache = LatentCache(folder)
    return {
        "num_frames": len(index),
        "num_crops": cache.num_crops,
        "num_captions": cache.num_captions,
        "num_prior_images": cache.num_prior,
    }


def _run_units(index: FrameIndex, folder: StoragePath, settings: dict[str, Any], runtime: RuntimeConfig) -> None:
    units = plan_units(index, settings["config"])
    pending = [unit for unit in units if not unit.record_path(folder).is_file()]
    results = run_actors(
        LatentsActor,
        [{"unit": unit} for unit in pending],
        settings=settings,
        folder=folder,
        num_workers=runtime.num_workers,
        use_gpu=runtime.use_gpu,
    )
    total, left = sum(unit.size for unit in units), sum(unit.size for unit in pending)
    with Progress("latents", total=total, unit="items", done=total - left) as progress, closing(results):
        for result in results:
            progress.advance(result["size"], kind=result["kind"])


class LatentsActor:
    """One worker: the base model in memory, and the units that it is given."""

    def __init__(
        self,
        *,
        base_dir: Path,
        shards: StoragePath,
        captions: Mapping[str, tuple[str, ...]],
        folder: StoragePath,
        config: LatentsConfig,
        use_gpu: bool,
    ) -> None:
        self._base_dir, self._shards, self._captions = base_dir, shards, captions
        self._folder, self._config, self._device = folder, config, "cuda" if use_gpu else "cpu"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do `row["unit"]`."""
        unit = row["unit"]
        self._writer.write(unit)
        return {"kind": unit.kind, "size": unit.size}

    @cached_property
    def _writer(self) -> LatentsWriter:
        """Made at the first unit, because only what a call raises is told as it should be."""
        torch.set_num_threads(1)  # one CPU each; sums also depend on the number of threads
        try:
            base = load_base(self._base_dir).frozen().to(self._device)
        except ValueError as error:
            raise UserError(str(error)) from error
        index = FrameIndex.open(self._shards).with_captions(self._captions)
        return LatentsWriter(base, index, ShardReader(self._shards, index), self._folder, self._config)
